// kv_saliency on CUDA for pytest: the launcher, on addresses of arrays.
#include "kv_cache/kv_saliency_cuda.cuh"

#include "bindings.h"
#include "fields.h"

namespace py = pybind11;

namespace tokcore::simt {
namespace {

SaliencyReduce reduce_of(const std::string& name) {
  if (name == "sum") return SaliencyReduce::kSum;
  if (name == "max") return SaliencyReduce::kMax;
  return name == "decayed" ? SaliencyReduce::kDecayed : SaliencyReduce::kNormalizedSum;
}

KvSaliencyParams saliency_params(const py::dict& values) {
  KvSaliencyParams params = {};
  Fields fields(values);
  std::string dtype, reduce;
  fields("dtype", dtype);
  fields("reduce", reduce);
  params.dtype = dtype_of(dtype);
  params.reduce = reduce_of(reduce);
  fields("q", params.q);
  fields("k", params.k);
  fields("stride_q_sequence", params.stride_q_sequence);
  fields("stride_q_probe", params.stride_q_probe);
  fields("stride_q_head", params.stride_q_head);
  fields("stride_k_sequence", params.stride_k_sequence);
  fields("stride_k_token", params.stride_k_token);
  fields("stride_k_head", params.stride_k_head);
  fields("positions", params.positions);
  fields("lse", params.lse);
  fields("num_sequences", params.num_sequences);
  fields("num_probes", params.num_probes);
  fields("num_q_heads", params.num_q_heads);
  fields("num_heads", params.num_heads);
  fields("num_tokens", params.num_tokens);
  fields("head_dim", params.head_dim);
  fields("scale", params.scale);
  fields("temperature", params.temperature);
  fields("adds_noise", params.adds_noise);
  fields("seed", params.seed);
  fields("decay", params.decay);
  fields("scores", params.scores);
  return params;
}

const Bindings bindings([](py::module_& m) {
  py::class_<KvSaliencyParams>(m, "KvSaliency").def(py::init(&saliency_params));
  m.def("workspace", &kv_saliency_workspace_cuda);
  m.def("run", [](const KvSaliencyParams& params, uintptr_t workspace) {
    const py::gil_scoped_release unlocked;
    run_kv_saliency_cuda(params, pointer<void>(workspace), nullptr);
  });
});

}  // namespace
}  // namespace tokcore::simt
