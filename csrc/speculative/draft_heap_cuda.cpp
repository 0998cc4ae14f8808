// Torch-facing CUDA entry of draft_heap. Values are not looked at before: that would wait for the GPU.
#include <torch/csrc/stable/library.h>

#include "core/cuda_scope.h"
#include "speculative/draft_heap_check.h"
#include "tokcore/speculative/draft_cuda.h"

namespace tokcore::speculative {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> draft_heap(const Tensor& candidates, const Tensor& probs,
                                                              const Tensor& asked_parents, const Tensor& asked_ranks,
                                                              const Tensor& asked_counts, const Tensor& roots,
                                                              const Tensor& budgets, int64_t max_nodes,
                                                              std::string value, double threshold) {
  const core::CudaScope scope("draft_heap", candidates);
  const HeapCall call({candidates, probs, asked_parents, asked_ranks, asked_counts, roots, budgets}, max_nodes, value,
                      threshold);
  run_draft_heap_cuda(call.params, scope.stream());
  return call.result();
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) { m.impl("draft_heap", TORCH_BOX(&tokcore::speculative::draft_heap)); }
