// Torch-facing CPU entry of draft_heap.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "speculative/draft_heap_check.h"
#include "tokcore/cpu/scratch.h"

namespace tokcore::speculative {
namespace {

// Asked nodes hang together, and no candidate is asked at twice.
void check_asked(const Checker& check, const DraftHeapParams& p) {
  for (int64_t b = 0; b < p.num_requests; ++b) {
    std::vector<bool> taken(static_cast<size_t>(p.num_asked * p.num_candidates));
    for (int64_t node = 1; node < p.asked[b]; ++node) {
      const int64_t parent = p.parents[b * p.num_asked + node], rank = p.ranks[b * p.num_asked + node];
      const std::string where = " at node " + std::to_string(node) + " of request " + std::to_string(b);
      if (parent < 0 || parent >= node) {
        check.fail("asked_parents", "a lower node's number, at least 0", std::to_string(parent) + where);
      }
      if (rank < 0 || rank >= p.num_candidates) {
        check.fail("asked_ranks", interval(0, p.num_candidates - 1, "K of candidates"), std::to_string(rank) + where);
      }
      const size_t cell = static_cast<size_t>(parent * p.num_candidates + rank);
      if (taken[cell]) check.fail("asked_ranks", "a candidate once", std::to_string(rank) + " again" + where);
      taken[cell] = true;
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> draft_heap(const Tensor& candidates, const Tensor& probs,
                                                              const Tensor& asked_parents, const Tensor& asked_ranks,
                                                              const Tensor& asked_counts, const Tensor& roots,
                                                              const Tensor& budgets, int64_t max_nodes,
                                                              std::string value, double threshold) {
  HeapCall call({candidates, probs, asked_parents, asked_ranks, asked_counts, roots, budgets}, max_nodes, value,
                threshold);
  DraftHeapParams& params = call.params;
  const int64_t B = params.num_requests, cells = B * params.num_asked * params.num_candidates;
  const cpu::Scratch lookup(static_cast<size_t>(cells) * sizeof(int16_t) + 1);
  params.lookup = reinterpret_cast<int16_t*>(lookup.data());
  check_values(call.check, "asked_counts", params.asked, B, 0, params.num_asked, "M of candidates");
  check_values(call.check, "budgets", params.budgets, B, 0, max_nodes, "max_nodes");
  check_asked(call.check, params);
  run_draft_heap_cpu(params, core::torch_threads());
  return call.result();
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) { m.impl("draft_heap", TORCH_BOX(&tokcore::speculative::draft_heap)); }
