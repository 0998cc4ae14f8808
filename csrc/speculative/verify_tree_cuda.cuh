// verify_tree on CUDA: a block walks down each tree; where there are few rows, a block for each row reads it first.
#pragma once

#include "speculative/sampling_row.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/workspace.h"
#include "tokcore/speculative/sampling_cuda.h"
#include "tokcore/speculative/verify_walk.h"

namespace tokcore::speculative {

struct VerifyTreeCuda {
  VerifyTreeParams params;
  RowSummary* summaries;  // [B, N], or null where rows are read on the path
};

// What is wrong with a request before any row is read: its node times 256 plus Status, of the first node; 0 if nothing.
template <class Walk>
TOKCORE_DEVICE uint64_t find_problem(const VerifyTreeParams& p, int64_t request, RowShared& shared) {
  const int32_t settings = check_settings(p, request);
  if (settings != kFine) return static_cast<uint64_t>(settings);
  uint64_t found = ~0ull;
  for (int64_t node = threadIdx.x; node < p.num_nodes && found == ~0ull; node += kRowThreads) {
    const int32_t status = Walk::check_node(p, request, node);
    if (status != kFine) found = static_cast<uint64_t>(node) << 8 | static_cast<uint64_t>(status);
  }
  found = block_min(shared, found);
  return found == ~0ull ? 0 : found;
}

// Grid: a block for each node of each request.
template <class T>
__global__ void __launch_bounds__(kRowThreads, 1) verify_rows_kernel(const VerifyTreeCuda call) {
  TOKCORE_SHARED_MEMORY(memory);
  RowShared& shared = *reinterpret_cast<RowShared*>(memory);
  const VerifyTreeParams& p = call.params;
  using Walk = VerifyWalk<DeviceRow<T>>;
  const int64_t request = blockIdx.x / p.num_nodes, node = blockIdx.x % p.num_nodes;
  if (find_problem<Walk>(p, request, shared) != 0 || node >= p.counts[request]) return;
  DeviceRow<T> row(p, &p, request, shared);
  const RowSummary summary = row.open(node, Walk::needs_mass(p));
  if (threadIdx.x == 0) call.summaries[blockIdx.x] = summary;
}

// Grid: a block for each request.
template <class T>
__global__ void __launch_bounds__(kRowThreads, 1) verify_tree_kernel(const VerifyTreeCuda call) {
  TOKCORE_SHARED_MEMORY(memory);
  RowShared& shared = *reinterpret_cast<RowShared*>(memory);
  const VerifyTreeParams& p = call.params;
  using Walk = VerifyWalk<DeviceRow<T>>;
  const int64_t request = blockIdx.x;
  int32_t* nodes = p.accepted_nodes + request * p.num_nodes;
  uint64_t problem = find_problem<Walk>(p, request, shared);
  int32_t length = 0;
  int64_t next_token = -1;
  if (problem == 0 && p.counts[request] > 0) {
    DeviceRow<T> row(p, &p, request, shared);
    Walk walk(p, request, row, call.summaries == nullptr ? nullptr : call.summaries + request * p.num_nodes);
    length = walk.run(nodes, threadIdx.x == 0);
    if (walk.status != kFine) problem = static_cast<uint64_t>(walk.node_) << 8 | static_cast<uint64_t>(walk.status);
    if (length > 0) next_token = walk.next_token;
  }
  __syncthreads();  // a failed walk has left nodes behind
  for (int64_t i = length + threadIdx.x; i < p.num_nodes; i += kRowThreads) nodes[i] = -1;
  if (threadIdx.x != 0) return;
  p.accepted_counts[request] = length;
  p.next_tokens[request] = next_token;
  p.status[2 * request] = static_cast<int32_t>(problem & 255);
  p.status[2 * request + 1] = static_cast<int32_t>(problem >> 8);
}

inline bool reads_rows_at_once(const VerifyTreeParams& params) {
  return params.rows_at_once && params.target_tokens == nullptr;
}

template <class T>
void launch_verify_tree(const VerifyTreeCuda& call, cuda::Stream stream) {
  const int64_t requests = call.params.num_requests;
  if (call.summaries != nullptr) {
    cuda::LaunchConfig rows =
        cuda::launch_over(requests * call.params.num_nodes, 1, kRowThreads, stream, "verify_rows_kernel");
    rows.shared_bytes = sizeof(RowShared);
    cuda::launch<verify_rows_kernel<T>>(rows, call);
  }
  cuda::LaunchConfig walk = cuda::launch_over(requests, 1, kRowThreads, stream, "verify_tree_kernel");
  walk.shared_bytes = sizeof(RowShared);
  cuda::launch<verify_tree_kernel<T>>(walk, call);
}

}  // namespace tokcore::speculative

namespace tokcore {

size_t verify_tree_workspace_cuda(const VerifyTreeParams& params) {
  if (!speculative::reads_rows_at_once(params)) return 0;
  cuda::WorkspacePlan plan;
  plan.take<speculative::RowSummary>(params.num_requests * params.num_nodes);
  return plan.used();
}
void run_verify_tree_cuda(const VerifyTreeParams& params, void* workspace, cuda::Stream stream) {
  cuda::WorkspacePlan plan(workspace);
  const int64_t rows = params.num_requests * params.num_nodes;
  const speculative::VerifyTreeCuda call = {
      params, speculative::reads_rows_at_once(params) ? plan.take<speculative::RowSummary>(rows) : nullptr};
  with_dtype(params.dtype, [&](auto element) { speculative::launch_verify_tree<decltype(element)>(call, stream); });
}

}  // namespace tokcore
