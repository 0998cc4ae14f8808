// draft_recycling on CUDA: a block for each tree, a thread for each node of the template, a round for each layer.
#pragma once

#include "speculative/draft_tree_cuda.cuh"
#include "speculative/last_rows_cuda.cuh"
#include "tokcore/cuda/scan.cuh"
#include "tokcore/cuda/workspace.h"
#include "tokcore/speculative/draft_cuda.h"

namespace tokcore::speculative {

inline constexpr unsigned kRecyclingThreads = 256;
static_assert(kRecyclingThreads >= kMostDraftNodes);

struct RecyclingShared {
  int64_t tokens[kMostDraftNodes];  // of the template's nodes; below 0: left out, or not known yet
  int32_t places[kMostDraftNodes];  // in the tree
  int32_t sums[32];
};

// Grid: a block for each request.
template <int = 0>
__global__ void __launch_bounds__(kRecyclingThreads) draft_recycling_kernel(const DraftRecyclingParams p) {
  TOKCORE_SHARED_MEMORY(memory);
  RecyclingShared& s = *reinterpret_cast<RecyclingShared*>(memory);
  constexpr int64_t kLeftOut = -1, kUnknown = -2;
  const int64_t request = blockIdx.x, root = p.roots[request], budget = p.budgets[request];
  const int node = static_cast<int>(threadIdx.x);
  const bool inside = node < p.template_nodes;
  const int parent = inside ? p.parents[node] : -1, rank = inside && node > 0 ? p.ranks[node] : 0;
  bool good = is_within(root, 0, p.vocab_size - 1) && is_within(budget, 0, p.template_nodes);
  if (node == 0) {
    good = good && parent == -1;
  } else if (inside) {
    good = good && is_within(parent, 0, node - 1) && is_within(rank, 0, p.num_successors - 1);
  }
  if (__syncthreads_and(good) == 0) return finish_tree(p.trees, request, 0);

  // A node is known a round after its parent is.
  int64_t token = node == 0 ? root : inside ? kUnknown : kLeftOut;
  if (node < kMostDraftNodes) s.tokens[node] = token;
  while (__syncthreads_or(token == kUnknown) != 0) {
    const int64_t above = token == kUnknown ? s.tokens[parent] : kUnknown;
    __syncthreads();
    if (above == kUnknown) continue;
    const int64_t found = above < 0 ? kLeftOut : p.adjacency[above * p.num_successors + rank];
    token = is_within(found, 0, p.vocab_size - 1) ? found : kLeftOut;
    s.tokens[node] = token;
  }

  // Those that are there move up; what comes after the budget is spent is left out, and so is all below it.
  int total;
  const int place = cuda::block_sum_before(token >= 0 ? 1 : 0, s.sums, total);
  if (node < kMostDraftNodes) s.places[node] = place;
  __syncthreads();
  if (token >= 0 && place < budget) {
    p.trees.parents[request * p.trees.max_nodes + place] = node == 0 ? -1 : s.places[parent];
    p.trees.tokens[request * p.trees.max_nodes + place] = token;
  }
  finish_tree(p.trees, request, total < budget ? total : budget);
}

struct RecyclingRows {
  DraftRecyclingUpdateParams p;
  int64_t num_rows, num_columns;

  TOKCORE_DEVICE int64_t place(int64_t row) const {
    const int64_t id = p.ids[row];
    return is_within(id, 0, p.vocab_size - 1) ? id : -1;
  }
  TOKCORE_DEVICE void write(int64_t row, int64_t place, int64_t column) const {
    p.adjacency[place * num_columns + column] = p.candidates[row * num_columns + column];
  }
};

}  // namespace tokcore::speculative

namespace tokcore {

void run_draft_recycling_cuda(const DraftRecyclingParams& params, cuda::Stream stream) {
  using namespace speculative;
  cuda::LaunchConfig config =
      cuda::launch_over(params.num_requests, 1, kRecyclingThreads, stream, "draft_recycling_kernel");
  config.shared_bytes = sizeof(RecyclingShared);
  cuda::launch<draft_recycling_kernel<>>(config, params);
}

size_t draft_recycling_update_workspace_cuda(const DraftRecyclingUpdateParams& params) {
  cuda::WorkspacePlan plan;
  plan.take<int32_t>(params.vocab_size);
  return plan.used();
}
void run_draft_recycling_update_cuda(const DraftRecyclingUpdateParams& params, void* workspace, cuda::Stream stream) {
  cuda::WorkspacePlan plan(workspace);
  const speculative::RecyclingRows rows = {params, params.num_rows, params.num_successors};
  speculative::launch_last_rows<speculative::RecyclingRows>({rows, plan.take<int32_t>(params.vocab_size)}, stream);
}

}  // namespace tokcore
