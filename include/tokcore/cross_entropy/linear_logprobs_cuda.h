// The family on CUDA. Which positions are active is known on the device only, where it is found: nothing here waits for
// the GPU, and everything can be captured into a graph.
//
// An index outside [0, V) cannot be reported without waiting. It is never used as an address: the gathered logit of
// that position becomes NaN, and so does every loss made of it.
#pragma once

#include <cstddef>
#include <optional>

#include "tokcore/cross_entropy/linear_logprobs.h"
#include "tokcore/cuda/machine.h"

namespace tokcore {

// Position t takes part if it has a row of e `shift` before it in its own sequence and indices[t, 0] is not ignored.
// LinearLogitsParams::active_positions and num_active are not read.
struct ActiveRule {
  std::optional<int64_t> ignore_index;
  int64_t sequence;  // positions of one sequence; 0: all are one
};

size_t linear_logprobs_forward_workspace_cuda(const LinearLogprobsForwardParams& params, const CudaMachine& machine);
void run_linear_logprobs_forward_cuda(const LinearLogprobsForwardParams& params, const ActiveRule& rule,
                                      const CudaCall& call);

// stored_logits and grad_c_sum are not looked at, grad_bias is written, not added to. The workspace is at most
// params.workspace_bytes, if that is neither 0 nor less than the least within which the backward can run.
size_t linear_logprobs_backward_workspace_cuda(const LinearLogprobsBackwardParams& params, const CudaMachine& machine);
int64_t least_backward_workspace_cuda(const LinearLogprobsBackwardParams& params, const CudaMachine& machine);
void run_linear_logprobs_backward_cuda(const LinearLogprobsBackwardParams& params, const ActiveRule& rule,
                                       const CudaCall& call);

// params.workspace holds the logits of a chunk, [chunk_size, V rounded up to 32]; chunk_size may be any multiple of 32.
// The loss goes to *loss on the device, params.loss is not written. With grad_c, grad_c_sum is needed if T is more than
// a chunk: it need not hold zeros, and grad_c is written from it. grad_bias is written, not added to.
size_t linear_cross_entropy_chunked_workspace_cuda(const LinearCrossEntropyChunkedParams& params,
                                                   const CudaMachine& machine);
void run_linear_cross_entropy_chunked_cuda(const LinearCrossEntropyChunkedParams& params, const ActiveRule& rule,
                                           float* loss, const CudaCall& call);

}  // namespace tokcore
