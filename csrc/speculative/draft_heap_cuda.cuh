// draft_heap on CUDA: a warp for each request. An asked node has one cursor, so that instead of a heap the lanes look
// for the greatest of at most 256 values, which no sift can do in fewer dependent steps.
#pragma once

#include "speculative/draft_tree_cuda.cuh"
#include "tokcore/common/exact_math.h"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/reduce.cuh"
#include "tokcore/speculative/draft_cuda.h"

namespace tokcore::speculative {

inline constexpr int kHeapCells = 2048;  // candidates that are kept in shared memory where all of them fit

// Cursors by asked node, and which candidates asked nodes are.
struct HeapShared {
  double values[kMostDraftNodes];     // of the next candidate; 0: no cursor
  double remaining[kMostDraftNodes];  // 1 - probabilities of the candidates before it
  double joint[kMostDraftNodes];      // of the asked node
  int32_t nodes[kMostDraftNodes];     // the asked node's number in the tree
  int32_t ranks[kMostDraftNodes];
  int32_t cells[kMostDraftNodes];  // parent * K + rank of an asked node
  int32_t candidates[kHeapCells];
  float probs[kHeapCells];
};

template <int = 0>
class HeapWarp {
 public:
  TOKCORE_DEVICE HeapWarp(const DraftHeapParams& params, int64_t request, HeapShared& shared)
      : p_(params), s_(shared), request_(request), lane_(static_cast<int>(threadIdx.x)) {
    const int64_t cells = p_.num_asked * p_.num_candidates;
    candidates_ = p_.candidates + request * cells;
    probs_ = p_.probs + request * cells;
    if (cells > kHeapCells) return;
    for (int i = lane_; i < cells; i += 32) {
      s_.candidates[i] = candidates_[i];
      s_.probs[i] = probs_[i];
    }
    candidates_ = s_.candidates;
    probs_ = s_.probs;
  }

  TOKCORE_DEVICE void run() {
    const int64_t asked = p_.asked[request_], budget = p_.budgets[request_];
    const bool good = is_within(asked, 0, p_.num_asked) && is_within(budget, 0, p_.trees.max_nodes);
    asked_ = good ? static_cast<int>(asked) : 0;
    if (good && asked_are_good() && budget > 0) {
      __syncwarp();
      add(-1, p_.roots[request_], asked_ > 0 ? 0 : -1, 1.0);
      while (count_ < budget) {
        const int best = pop();
        if (best < 0) break;
        const int rank = s_.ranks[best], cell = best * static_cast<int>(p_.num_candidates) + rank;
        const double above = s_.joint[best], prob = static_cast<double>(probs_[cell]);
        const double left = exact::add(s_.remaining[best], -prob);
        const int node = s_.nodes[best];
        __syncwarp();
        add(node, candidates_[cell], asked_at(cell), exact::mul(above, prob));
        set_cursor(best, node, rank + 1, left > 0.0 ? left : 0.0, above);
      }
    }
    for (int64_t node = count_ + lane_; node < p_.trees.max_nodes; node += 32) write(node, 0.0, -1);
    finish_tree(p_.trees, request_, count_);
  }

 private:
  // Asked nodes hang together, and no candidate is asked at twice.
  TOKCORE_DEVICE bool asked_are_good() {
    bool good = true;
    for (int m = lane_; m < asked_; m += 32) {
      const int64_t at = request_ * p_.num_asked + m;
      s_.values[m] = 0.0;
      s_.cells[m] = -1;
      if (m == 0) continue;
      const int parent = p_.parents[at], rank = p_.ranks[at];
      good = good && is_within(parent, 0, m - 1) && is_within(rank, 0, p_.num_candidates - 1);
      s_.cells[m] = parent * static_cast<int>(p_.num_candidates) + rank;
    }
    if (__all_sync(cuda::kAllLanes, good) == 0) return false;
    __syncwarp();
    for (int m = lane_; m < asked_; m += 32) {
      for (int other = 1; other < m; ++other) good = good && s_.cells[other] != s_.cells[m];
    }
    return __all_sync(cuda::kAllLanes, good) != 0;
  }

  // The asked node that a candidate is, or -1.
  TOKCORE_DEVICE int asked_at(int cell) const {
    int found = -1;
    for (int m = lane_; m < asked_; m += 32) found = s_.cells[m] == cell ? m : found;
    return __reduce_max_sync(cuda::kAllLanes, found);
  }

  // The asked node whose cursor comes first, or -1: greater value, then lower number. Its cursor is gone.
  TOKCORE_DEVICE int pop() {
    double value = 0.0;
    int best = kMostDraftNodes;
    for (int m = lane_; m < asked_; m += 32) {
      if (s_.values[m] > value) {
        value = s_.values[m];
        best = m;
      }
    }
    for (int step = 16; step > 0; step /= 2) {
      const double other = __shfl_xor_sync(cuda::kAllLanes, value, step);
      const int from = __shfl_xor_sync(cuda::kAllLanes, best, step);
      if (other > value || (other == value && from < best)) {
        value = other;
        best = from;
      }
    }
    if (best == kMostDraftNodes) return -1;
    __syncwarp();
    if (lane_ == 0) s_.values[best] = 0.0;
    __syncwarp();
    return best;
  }

  TOKCORE_DEVICE void write(int64_t node, double joint, int source) const {
    p_.joint[request_ * p_.trees.max_nodes + node] = static_cast<float>(joint);
    p_.sources[request_ * p_.trees.max_nodes + node] = source;
  }
  TOKCORE_DEVICE void add(int parent, int64_t token, int source, double joint) {
    const int node = count_++;
    if (lane_ == 0) {
      write(node, joint, source);
      p_.trees.parents[request_ * p_.trees.max_nodes + node] = parent;
      p_.trees.tokens[request_ * p_.trees.max_nodes + node] = token;
    }
    if (source >= 0) set_cursor(source, node, 0, 1.0, joint);
  }
  // With its value, unless it is at the end or below the threshold; a NaN is below everything.
  TOKCORE_DEVICE void set_cursor(int asked, int node, int rank, double remaining, double joint) {
    double value = 0.0;
    const int cell = asked * static_cast<int>(p_.num_candidates) + rank;
    if (rank < p_.num_candidates && candidates_[cell] >= 0) {
      value = exact::mul(joint, p_.value == DraftValue::kJoint ? static_cast<double>(probs_[cell]) : remaining);
      if (!(value > 0.0 && value >= p_.threshold)) value = 0.0;
    }
    __syncwarp();
    if (lane_ == 0) {
      s_.values[asked] = value;
      s_.remaining[asked] = remaining;
      s_.joint[asked] = joint;
      s_.nodes[asked] = node;
      s_.ranks[asked] = rank;
    }
    __syncwarp();
  }

  const DraftHeapParams& p_;
  HeapShared& s_;
  int64_t request_;
  int lane_, asked_ = 0, count_ = 0;
  const int32_t* candidates_;
  const float* probs_;
};

// Grid: a warp for each request.
template <int = 0>
__global__ void __launch_bounds__(32) draft_heap_kernel(const DraftHeapParams params) {
  TOKCORE_SHARED_MEMORY(memory);
  HeapWarp<>(params, blockIdx.x, *reinterpret_cast<HeapShared*>(memory)).run();
}

}  // namespace tokcore::speculative

namespace tokcore {

void run_draft_heap_cuda(const DraftHeapParams& params, cuda::Stream stream) {
  using namespace speculative;
  cuda::LaunchConfig config = cuda::launch_over(params.num_requests, 1, 32, stream, "draft_heap_kernel");
  config.shared_bytes = sizeof(HeapShared);
  cuda::launch<draft_heap_kernel<>>(config, params);
}

}  // namespace tokcore
