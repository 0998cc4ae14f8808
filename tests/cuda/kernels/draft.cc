// The draft builders on CUDA for pytest: the launchers, on addresses of arrays.
#include "bindings.h"
#include "fields.h"
#include "speculative/draft_candidates_cuda.cuh"
#include "speculative/draft_heap_cuda.cuh"
#include "speculative/draft_ngram_cuda.cuh"
#include "speculative/draft_recycling_cuda.cuh"
#include "speculative/draft_trigram_cuda.cuh"

namespace py = pybind11;

namespace tokcore::simt {
namespace {

void fill(DraftTrees& trees, Fields& fields) {
  fields("tree_parents", trees.parents);
  fields("tree_tokens", trees.tokens);
  fields("tree_counts", trees.counts);
  fields("max_nodes", trees.max_nodes);
}
void fill(TrigramTable& table, Fields& fields) {
  fields("keys", table.keys);
  fields("successors", table.tokens);
  fields("table_probs", table.probs);
  fields("num_slots", table.num_slots);
  fields("num_successors", table.num_successors);
}

void candidates(const py::dict& values) {
  DraftCandidatesParams params = {};
  {
    Fields fields(values);
    std::string dtype;
    fields("dtype", dtype);
    params.dtype = dtype_of(dtype);
    fields("logits", params.logits);
    fields("stride_row", params.stride_row);
    fields("num_rows", params.num_rows);
    fields("vocab_size", params.vocab_size);
    fields("k", params.k);
    fields("temperature", params.temperature);
    fields("tokens", params.tokens);
    fields("probs", params.probs);
  }
  const py::gil_scoped_release unlocked;
  run_draft_candidates_cuda(params, nullptr);
}

void ngram(const py::dict& values) {
  DraftNgramParams params = {};
  {
    Fields fields(values);
    fill(params.trees, fields);
    fields("history", params.history);
    fields("lengths", params.lengths);
    fields("budgets", params.budgets);
    fields("num_requests", params.num_requests);
    fields("row_length", params.row_length);
    fields("longest", params.longest);
    fields("shortest", params.shortest);
    fields("max_depth", params.max_depth);
  }
  const py::gil_scoped_release unlocked;
  run_draft_ngram_cuda(params, nullptr);
}

void heap(const py::dict& values) {
  DraftHeapParams params = {};
  {
    Fields fields(values);
    fill(params.trees, fields);
    fields("candidates", params.candidates);
    fields("probs", params.probs);
    fields("asked_parents", params.parents);
    fields("asked_ranks", params.ranks);
    fields("asked_counts", params.asked);
    fields("roots", params.roots);
    fields("budgets", params.budgets);
    fields("num_requests", params.num_requests);
    fields("num_asked", params.num_asked);
    fields("num_candidates", params.num_candidates);
    bool takes_joint = false;
    fields("takes_joint", takes_joint);
    params.value = takes_joint ? DraftValue::kJoint : DraftValue::kResidual;
    fields("threshold", params.threshold);
    fields("joint", params.joint);
    fields("sources", params.sources);
  }
  const py::gil_scoped_release unlocked;
  run_draft_heap_cuda(params, nullptr);
}

void recycling(const py::dict& values) {
  DraftRecyclingParams params = {};
  {
    Fields fields(values);
    fill(params.trees, fields);
    fields("adjacency", params.adjacency);
    fields("roots", params.roots);
    fields("budgets", params.budgets);
    fields("template_parents", params.parents);
    fields("template_ranks", params.ranks);
    fields("num_requests", params.num_requests);
    fields("num_successors", params.num_successors);
    fields("vocab_size", params.vocab_size);
    fields("template_nodes", params.template_nodes);
  }
  const py::gil_scoped_release unlocked;
  run_draft_recycling_cuda(params, nullptr);
}

DraftRecyclingUpdateParams recycling_update_params(const py::dict& values) {
  DraftRecyclingUpdateParams params = {};
  Fields fields(values);
  fields("ids", params.ids);
  fields("candidates", params.candidates);
  fields("num_rows", params.num_rows);
  fields("num_successors", params.num_successors);
  fields("vocab_size", params.vocab_size);
  fields("adjacency", params.adjacency);
  return params;
}

DraftTrigramParams trigram_params(const py::dict& values) {
  DraftTrigramParams params = {};
  Fields fields(values);
  fill(params.trees, fields);
  fill(params.table, fields);
  fields("previous", params.previous);
  fields("roots", params.roots);
  fields("budgets", params.budgets);
  fields("num_requests", params.num_requests);
  fields("vocab_size", params.vocab_size);
  fields("simulations", params.simulations);
  fields("max_depth", params.max_depth);
  fields("exploration", params.exploration);
  fields("joint", params.joint);
  return params;
}

DraftTrigramUpdateParams trigram_update_params(const py::dict& values) {
  DraftTrigramUpdateParams params = {};
  Fields fields(values);
  fill(params.table, fields);
  fields("contexts", params.contexts);
  fields("candidates", params.candidates);
  fields("candidate_probs", params.probs);
  fields("num_rows", params.num_rows);
  return params;
}

// What has a workspace: its size first, then the call.
template <class Params>
void bind(py::module_& m, const char* name, Params (*params_of)(const py::dict&), size_t (*workspace)(const Params&),
          void (*run)(const Params&, void*, cuda::Stream)) {
  py::class_<Params>(m, name).def(py::init(params_of));
  m.def("workspace", workspace);
  m.def("run", [run](const Params& params, uintptr_t memory) {
    const py::gil_scoped_release unlocked;
    run(params, pointer<void>(memory), nullptr);
  });
}

const Bindings bindings([](py::module_& m) {
  m.def("draft_candidates", &candidates);
  m.def("draft_ngram", &ngram);
  m.def("draft_heap", &heap);
  m.def("draft_recycling", &recycling);
  bind(m, "DraftRecyclingUpdate", &recycling_update_params, &draft_recycling_update_workspace_cuda,
       &run_draft_recycling_update_cuda);
  bind(m, "DraftTrigram", &trigram_params, &draft_trigram_workspace_cuda, &run_draft_trigram_cuda);
  bind(m, "DraftTrigramUpdate", &trigram_update_params, &draft_trigram_update_workspace_cuda,
       &run_draft_trigram_update_cuda);
});

}  // namespace
}  // namespace tokcore::simt
