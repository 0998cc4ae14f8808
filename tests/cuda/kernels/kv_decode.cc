// decode_attention on CUDA for pytest: the launcher, on addresses of arrays.
#include "kv_cache/decode_attention_cuda.cuh"

#include "bindings.h"
#include "kernels/kv_cache.h"

namespace py = pybind11;

namespace tokcore::simt {
namespace {

DecodeAttentionParams decode_params(const py::dict& values) {
  DecodeAttentionParams params = {};
  Fields fields(values);
  fields.nested("cache", [&](Fields& inner) { fill(params.cache, inner); });
  fields("q", params.q);
  fields("stride_q_sequence", params.stride_q_sequence);
  fields("stride_q_query", params.stride_q_query);
  fields("stride_q_head", params.stride_q_head);
  fields("num_queries", params.num_queries);
  fields("num_q_heads", params.num_q_heads);
  fields("scale", params.scale);
  fields("softcap", params.softcap);
  fields("window", params.window);
  fields("tree_ancestors", params.trees.ancestors);
  fields("tree_depths", params.trees.depths);
  fields("tree_counts", params.trees.counts);
  fields("tree_words", params.trees.words);
  fields("out", params.out);
  fields("lse", params.lse);
  return params;
}

const Bindings bindings([](py::module_& m) {
  py::class_<DecodeAttentionParams>(m, "DecodeAttention").def(py::init(&decode_params));
  m.def("workspace", &decode_attention_workspace_cuda);
  m.def("run", [](const DecodeAttentionParams& params, uintptr_t workspace) {
    const py::gil_scoped_release unlocked;
    run_decode_attention_cuda(params, pointer<void>(workspace), nullptr);
  });
  m.def("split_tokens", &kv_cache::split_tokens);
  m.def("most_splits", &kv_cache::most_splits);
});

}  // namespace
}  // namespace tokcore::simt
