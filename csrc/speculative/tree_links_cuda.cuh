// tree_links on CUDA: a block for each tree, a thread for each node. Nobody has seen the parents before: what is not a
// node before its own counts as none, so that no loop spins and nothing is read out of bounds.
#pragma once

#include "tokcore/common/math.h"
#include "tokcore/cuda/kernel.h"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/speculative/sampling_cuda.h"

namespace tokcore::speculative {

inline constexpr unsigned kLinkThreads = 256;
static_assert(kLinkThreads >= kMostTreeNodes);

// Grid: a block for each tree.
template <int = 0>
__global__ void __launch_bounds__(kLinkThreads) tree_links_kernel(const TreeLinksParams params) {
  TOKCORE_SHARED_MEMORY(memory);
  auto* parents = reinterpret_cast<int32_t*>(memory);  // [N], -1 for none
  const int64_t tree = blockIdx.x, N = params.num_nodes, words = ceil_div(N, int64_t{64});
  const int32_t given = params.counts[tree];
  const int32_t count = given < 0 ? 0 : given < N ? given : static_cast<int32_t>(N);
  const int32_t node = static_cast<int32_t>(threadIdx.x);
  if (node < N) {
    const int32_t parent = node < count ? params.parents[tree * N + node] : -1;
    parents[node] = parent >= 0 && parent < node ? parent : -1;
  }
  __syncthreads();
  if (node >= N) return;

  const bool inside = node < count;
  int32_t depth = 0;
  for (int32_t above = node; inside && parents[above] >= 0; above = parents[above]) ++depth;
  for (int64_t word = 0; word < words; ++word) {
    uint64_t bits = 0;
    for (int32_t above = node; inside && above >= 0; above = parents[above]) {
      if (above / 64 == word) bits |= uint64_t{1} << above % 64;
    }
    params.ancestors[(tree * N + node) * words + word] = bits;
  }
  int32_t child = -1, sibling = -1;
  for (int32_t other = count - 1; inside && other > node; --other) {
    if (parents[other] == node) child = other;
    if (parents[node] >= 0 && parents[other] == parents[node]) sibling = other;
  }
  params.depths[tree * N + node] = depth;
  params.first_child[tree * N + node] = child;
  params.next_sibling[tree * N + node] = sibling;
}

}  // namespace tokcore::speculative

namespace tokcore {

void run_tree_links_cuda(const TreeLinksParams& params, cuda::Stream stream) {
  using speculative::kLinkThreads;
  cuda::LaunchConfig config = cuda::launch_over(params.num_trees, 1, kLinkThreads, stream, "tree_links_kernel");
  config.shared_bytes = kLinkThreads * sizeof(int32_t);
  cuda::launch<speculative::tree_links_kernel<>>(config, params);
}

}  // namespace tokcore
