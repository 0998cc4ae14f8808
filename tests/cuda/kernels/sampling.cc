// sample, draft_samples, verify_tree and tree_links on CUDA for pytest: the launchers, on addresses of arrays.
#include <pybind11/stl.h>

#include <vector>

#include "bindings.h"
#include "fields.h"
#include "speculative/draft_samples_cuda.cuh"
#include "speculative/sample_cuda.cuh"
#include "speculative/tree_links_cuda.cuh"
#include "speculative/verify_tree_cuda.cuh"

namespace py = pybind11;

namespace tokcore::simt {
namespace {

void fill(speculative::LogitsParams& params, Fields& fields) {
  std::string dtype = "float32";
  fields("dtype", dtype);
  params.dtype = dtype_of(dtype);
  fields("logits", params.logits);
  fields("stride_request", params.stride_request);
  fields("stride_node", params.stride_node);
  fields("num_requests", params.num_requests);
  fields("num_nodes", params.num_nodes);
  fields("vocab_size", params.vocab_size);
  fields("seeds", params.seeds);
  fields("positions", params.positions);
  std::vector<double> settings;
  fields("settings", settings);
  for (size_t i = 0; i < settings.size(); ++i) params.settings[i] = settings[i];
  fields("per_request", params.per_request);
  fields("token_counts", params.token_counts);
  fields("allowed_bits", params.allowed_bits);
  fields("status", params.status);
}

void sample(const py::dict& values) {
  SampleParams params = {};
  {
    Fields fields(values);
    fill(params, fields);
    fields("wants_entropy", params.wants_entropy);
    fields("tokens", params.tokens);
    fields("logprobs", params.logprobs);
    fields("entropies", params.entropies);
    fields("varentropies", params.varentropies);
  }
  const py::gil_scoped_release unlocked;
  run_sample_cuda(params, nullptr);
}

void draft_samples(const py::dict& values) {
  DraftSamplesParams params = {};
  {
    Fields fields(values);
    fill(params, fields);
    int children = 0;
    fields("children", children);
    params.children = static_cast<DraftChildren>(children);
    fields("k", params.k);
    fields("tokens", params.tokens);
    fields("probs", params.probs);
    fields("draft_probs", params.draft_probs);
  }
  const py::gil_scoped_release unlocked;
  run_draft_samples_cuda(params, nullptr);
}

VerifyTreeParams verify_params(const py::dict& values) {
  VerifyTreeParams params = {};
  Fields fields(values);
  fill(params, fields);
  int rule = 0;
  fields("rule", rule);
  params.rule = static_cast<VerifyRule>(rule);
  fields("lossless", params.lossless);
  fields("rows_at_once", params.rows_at_once);
  fields("typical_epsilon", params.typical_epsilon);
  fields("typical_alpha", params.typical_alpha);
  fields("target_tokens", params.target_tokens);
  fields("draft_probs", params.draft_probs);
  fields("stride_draft_request", params.stride_draft_request);
  fields("stride_draft_node", params.stride_draft_node);
  fields("tree_tokens", params.tree_tokens);
  fields("parents", params.parents);
  fields("counts", params.counts);
  fields("first_child", params.first_child);
  fields("next_sibling", params.next_sibling);
  fields("accepted_nodes", params.accepted_nodes);
  fields("accepted_counts", params.accepted_counts);
  fields("next_tokens", params.next_tokens);
  return params;
}

void tree_links(const py::dict& values) {
  TreeLinksParams params = {};
  {
    Fields fields(values);
    fields("parents", params.parents);
    fields("counts", params.counts);
    fields("num_trees", params.num_trees);
    fields("num_nodes", params.num_nodes);
    fields("ancestors", params.ancestors);
    fields("depths", params.depths);
    fields("first_child", params.first_child);
    fields("next_sibling", params.next_sibling);
  }
  const py::gil_scoped_release unlocked;
  run_tree_links_cuda(params, nullptr);
}

const Bindings bindings([](py::module_& m) {
  m.def("sample", &sample);
  m.def("draft_samples", &draft_samples);
  m.def("verify_tree_workspace",
        [](const py::dict& values) { return verify_tree_workspace_cuda(verify_params(values)); });
  m.def("verify_tree", [](const py::dict& values, uintptr_t workspace) {
    const VerifyTreeParams params = verify_params(values);
    const py::gil_scoped_release unlocked;
    run_verify_tree_cuda(params, pointer<void>(workspace), nullptr);
  });
  m.def("tree_links", &tree_links);
});

}  // namespace
}  // namespace tokcore::simt
