// draft_trigram on CUDA: a warp for each request. Simulations follow one another, and so do the layers of one; a lane
// weighs a successor.
#pragma once

#include "speculative/draft_tree_cuda.cuh"
#include "speculative/last_rows_cuda.cuh"
#include "tokcore/common/exact_math.h"
#include "tokcore/cuda/reduce.cuh"
#include "tokcore/cuda/workspace.h"
#include "tokcore/speculative/draft_cuda.h"

namespace tokcore::speculative {

// What one simulation passed.
struct TrigramShared {
  int64_t edges[kMostTrigramDepth];
  double probs[kMostTrigramDepth];
};

template <int = 0>
class TrigramWarp {
 public:
  TOKCORE_DEVICE TrigramWarp(const DraftTrigramParams& params, int64_t request, TrigramShared& shared)
      : p_(params),
        s_(shared),
        K_(params.table.num_successors),
        first_(request * params.trees.max_nodes),
        edges_(params.edges + first_ * K_),
        lane_(static_cast<int>(threadIdx.x)) {}

  TOKCORE_DEVICE void run(int64_t request) {
    const int64_t previous = p_.previous[request], root = p_.roots[request], budget = p_.budgets[request];
    const bool good = is_within(previous, -1, p_.vocab_size - 1) && is_within(root, 0, p_.vocab_size - 1) &&
                      is_within(budget, 0, p_.trees.max_nodes);
    if (good && budget > 0) {
      add(-1, previous, root, 1.0);
      // A simulation that finds no successor of the root changes nothing, and neither would those after it.
      for (int64_t i = 0; i < p_.simulations && count_ < budget && simulate(root) > 0; ++i) {
      }
    }
    for (int64_t node = count_ + lane_; node < p_.trees.max_nodes; node += 32) p_.joint[first_ + node] = 0.0f;
    finish_tree(p_.trees, request, count_);
  }

 private:
  TOKCORE_DEVICE int add(int parent, int64_t before, int64_t token, double joint) {
    const int node = count_++;
    for (int64_t i = lane_; i < K_; i += 32) edges_[node * K_ + i] = {0.0, 0, -1};
    int64_t slot = -1;
    if (before >= 0) {
      const int64_t key = trigram_key(before, token), place = trigram_slot(key, p_.table.num_slots);
      if (p_.table.keys[place] == key) slot = place;
    }
    if (lane_ == 0) {
      p_.trees.parents[first_ + node] = parent;
      p_.trees.tokens[first_ + node] = token;
      p_.joint[first_ + node] = static_cast<float>(joint);
      p_.slots[first_ + node] = slot;
    }
    __syncwarp();
    return node;
  }

  // The rank to go down by, -1 where the table knows no successor.
  TOKCORE_DEVICE int64_t select(int node, int64_t slot) const {
    const int32_t* tokens = p_.table.tokens + slot * K_;
    const float* probs = p_.table.probs + slot * K_;
    const TrigramEdge* edges = edges_ + node * K_;
    const auto is_open = [&](int64_t i) { return is_within(tokens[i], 0, p_.vocab_size - 1) && probs[i] > 0.0f; };
    constexpr int kNone = 0x7fffffff;
    int visits = 0, first = kNone;
    for (int64_t i = K_ - 1 - lane_; i >= 0; i -= 32) {
      visits += edges[i].visits;
      if (is_open(i)) first = static_cast<int>(i);
    }
    visits = 1 + __reduce_add_sync(cuda::kAllLanes, visits);
    first = __reduce_min_sync(cuda::kAllLanes, first);
    if (first == kNone) return -1;
    const double root = sqrt(static_cast<double>(visits));
    int best = kNone;
    double greatest = -INFINITY;
    for (int64_t i = lane_; i < K_; i += 32) {
      if (!is_open(i)) continue;
      const double mean = edges[i].visits > 0 ? edges[i].total / edges[i].visits : 0.0;
      const double prior = exact::mul(p_.exploration, static_cast<double>(probs[i]));
      double score = exact::add(mean, exact::mul(prior, root) / (1 + edges[i].visits));
      // Nothing is greater than a NaN that comes first, and one that comes later is not greater than anything.
      if (score != score) score = i == first ? INFINITY : -INFINITY;
      if (best == kNone || score > greatest) {
        best = static_cast<int>(i);
        greatest = score;
      }
    }
    for (int step = 16; step > 0; step /= 2) {
      const double other = __shfl_xor_sync(cuda::kAllLanes, greatest, step);
      const int from = __shfl_xor_sync(cuda::kAllLanes, best, step);
      if (other > greatest || (other == greatest && from < best)) {
        greatest = other;
        best = from;
      }
    }
    return best;
  }

  // Returns how many edges it passed.
  TOKCORE_DEVICE int simulate(int64_t root) {
    int depth = 0, node = 0;
    double joint = 1.0;
    int64_t token = root;
    while (depth < p_.max_depth) {
      const int64_t slot = p_.slots[first_ + node];
      const int64_t rank = slot < 0 ? -1 : select(node, slot);
      if (rank < 0) break;
      const int64_t edge = node * K_ + rank, cell = slot * K_ + rank;
      const double prob = static_cast<double>(p_.table.probs[cell]);
      const int64_t next = p_.table.tokens[cell];
      joint = exact::mul(joint, prob);
      const int child = edges_[edge].child;
      const int reached = child >= 0 ? child : add(node, token, next, joint);
      if (lane_ == 0) {
        s_.edges[depth] = edge;
        s_.probs[depth] = prob;
        edges_[edge].child = reached;
      }
      ++depth;
      node = reached;
      token = next;
      if (child < 0) break;
    }
    __syncwarp();
    // The gains run up the path; a lane adds its edges' to what they have.
    double gain = 0.0;
    for (int i = depth - 1; i >= 0; --i) {
      gain = exact::mul(s_.probs[i], exact::add(1.0, gain));
      if (i % 32 != lane_) continue;
      TrigramEdge& edge = edges_[s_.edges[i]];
      edge.total = exact::add(edge.total, gain / static_cast<double>(p_.max_depth));
      ++edge.visits;
    }
    __syncwarp();
    return depth;
  }

  const DraftTrigramParams& p_;
  TrigramShared& s_;
  int64_t K_, first_;
  TrigramEdge* edges_;
  int lane_, count_ = 0;
};

// Grid: a warp for each request.
template <int = 0>
__global__ void __launch_bounds__(32, 1) draft_trigram_kernel(const DraftTrigramParams params) {
  TOKCORE_SHARED_MEMORY(memory);
  TrigramWarp<>(params, blockIdx.x, *reinterpret_cast<TrigramShared*>(memory)).run(blockIdx.x);
}

struct TrigramRows {
  DraftTrigramUpdateParams p;
  int64_t num_rows, num_columns;

  TOKCORE_DEVICE int64_t key(int64_t row) const { return trigram_key(p.contexts[2 * row], p.contexts[2 * row + 1]); }
  TOKCORE_DEVICE int64_t place(int64_t row) const {
    const bool good = is_within(p.contexts[2 * row], 0, kMostTrigramTokens - 1) &&
                      is_within(p.contexts[2 * row + 1], 0, kMostTrigramTokens - 1);
    return good ? trigram_slot(key(row), p.table.num_slots) : -1;
  }
  TOKCORE_DEVICE void write(int64_t row, int64_t place, int64_t column) const {
    if (column == 0) p.table.keys[place] = key(row);
    p.table.tokens[place * num_columns + column] = p.candidates[row * num_columns + column];
    p.table.probs[place * num_columns + column] = p.probs[row * num_columns + column];
  }
};

}  // namespace tokcore::speculative

namespace tokcore {

size_t draft_trigram_workspace_cuda(const DraftTrigramParams& params) {
  cuda::WorkspacePlan plan;
  plan.take<TrigramEdge>(params.num_requests * params.trees.max_nodes * params.table.num_successors);
  plan.take<int64_t>(params.num_requests * params.trees.max_nodes);
  return plan.used();
}
void run_draft_trigram_cuda(const DraftTrigramParams& params, void* workspace, cuda::Stream stream) {
  using namespace speculative;
  cuda::WorkspacePlan plan(workspace);
  DraftTrigramParams placed = params;
  const int64_t nodes = params.num_requests * params.trees.max_nodes;
  placed.edges = plan.take<TrigramEdge>(nodes * params.table.num_successors);
  placed.slots = plan.take<int64_t>(nodes);
  cuda::LaunchConfig config = cuda::launch_over(params.num_requests, 1, 32, stream, "draft_trigram_kernel");
  config.shared_bytes = sizeof(TrigramShared);
  cuda::launch<draft_trigram_kernel<>>(config, placed);
}

size_t draft_trigram_update_workspace_cuda(const DraftTrigramUpdateParams& params) {
  cuda::WorkspacePlan plan;
  plan.take<int32_t>(params.table.num_slots);
  return plan.used();
}
void run_draft_trigram_update_cuda(const DraftTrigramUpdateParams& params, void* workspace, cuda::Stream stream) {
  cuda::WorkspacePlan plan(workspace);
  const speculative::TrigramRows rows = {params, params.num_rows, params.table.num_successors};
  speculative::launch_last_rows<speculative::TrigramRows>({rows, plan.take<int32_t>(params.table.num_slots)}, stream);
}

}  // namespace tokcore
