// draft_ngram on CUDA: a block for each request looks at as many places as it has threads. A place whose continuation
// the tree holds already adds nothing later either, since trees only grow: so that each place that is inserted adds a
// node, and there are no more of them than nodes.
#pragma once

#include "speculative/draft_tree_cuda.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/speculative/draft_cuda.h"

namespace tokcore::speculative {

inline constexpr unsigned kNgramThreads = 256;

struct NgramShared {
  int64_t tokens[kMostDraftNodes];
  int32_t parents[kMostDraftNodes];
  int32_t first_child[kMostDraftNodes];   // -1: none
  int32_t next_sibling[kMostDraftNodes];  // -1: none
  int32_t count;
  int32_t chosen;  // the lowest thread whose place adds a node
};

// The child of `node` with this token, or -1.
TOKCORE_DEVICE int find_child(const NgramShared& s, int node, int64_t token) {
  int child = s.first_child[node];
  while (child >= 0 && s.tokens[child] != token) child = s.next_sibling[child];
  return child;
}

// What follows the place `end`, as far as the tree holds it: `at` becomes the first token that it does not hold, `last`
// if there is none. Returns the last node.
TOKCORE_DEVICE int follow(const NgramShared& s, const int64_t* history, int64_t end, int64_t last, int64_t& at) {
  int node = 0;
  for (at = end + 1; at < last; ++at) {
    const int child = find_child(s, node, history[at]);
    if (child < 0) return node;
    node = child;
  }
  return node;
}

TOKCORE_DEVICE int add_child(NgramShared& s, int parent, int64_t token) {
  const int node = s.count++;
  s.tokens[node] = token;
  s.parents[node] = parent;
  s.first_child[node] = -1;
  s.next_sibling[node] = parent < 0 ? -1 : s.first_child[parent];
  if (parent >= 0) s.first_child[parent] = node;
  return node;
}

// Grid: a block for each request.
template <int = 0>
__global__ void __launch_bounds__(kNgramThreads, 1) draft_ngram_kernel(const DraftNgramParams p) {
  TOKCORE_SHARED_MEMORY(memory);
  NgramShared& s = *reinterpret_cast<NgramShared*>(memory);
  const int64_t request = blockIdx.x, length = p.lengths[request], budget = p.budgets[request];
  const int64_t* history = p.history + request * p.row_length;
  const bool good = is_within(length, 0, p.row_length) && is_within(budget, 0, p.trees.max_nodes);
  if (!good || length == 0 || budget == 0) return finish_tree(p.trees, request, 0);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread == 0) {
    s.count = 0;
    add_child(s, -1, history[length - 1]);
  }
  __syncthreads();

  for (int64_t n = p.longest; n >= p.shortest && s.count < budget; --n) {
    for (int64_t top = length - 2; top >= n - 1 && s.count < budget; top -= kNgramThreads) {
      // Places of longer n-grams have had their turn.
      const int64_t end = top - thread, last = min(length, end + p.max_depth + 1);
      bool adds = end >= n - 1 && is_suffix(history, length, end, n);
      adds = adds && (n == p.longest || end < n || history[end - n] != history[length - 1 - n]);
      for (int after = -1;;) {
        int64_t at = last;
        if (adds && thread > after) follow(s, history, end, last, at);
        adds = adds && thread > after && at < last;
        if (thread == 0) s.chosen = kNgramThreads;
        __syncthreads();
        if (adds) atomicMin(&s.chosen, thread);
        __syncthreads();
        after = s.chosen;
        if (after == kNgramThreads) break;
        if (thread == after) {
          for (int node = follow(s, history, end, last, at); at < last && s.count < budget; ++at) {
            node = add_child(s, node, history[at]);
          }
        }
        __syncthreads();
        if (s.count >= budget) break;
      }
      __syncthreads();
    }
  }
  __syncthreads();
  const int count = s.count;
  for (int node = thread; node < count; node += kNgramThreads) {
    p.trees.parents[request * p.trees.max_nodes + node] = s.parents[node];
    p.trees.tokens[request * p.trees.max_nodes + node] = s.tokens[node];
  }
  finish_tree(p.trees, request, count);
}

}  // namespace tokcore::speculative

namespace tokcore {

void run_draft_ngram_cuda(const DraftNgramParams& params, cuda::Stream stream) {
  using namespace speculative;
  cuda::LaunchConfig config = cuda::launch_over(params.num_requests, 1, kNgramThreads, stream, "draft_ngram_kernel");
  config.shared_bytes = sizeof(NgramShared);
  cuda::launch<draft_ngram_kernel<>>(config, params);
}

}  // namespace tokcore
