// Statistics of the rows of softmax(softcap(e c^T + bias) / temperature), and their gradients, without the matrix.
//
// Letters: T positions, C hidden size, V vocabulary, K gathered logits a position.
// z = softcap * tanh((e c^T + bias) / softcap) / temperature in fp32; without softcap z = (e c^T + bias) / temperature.
// Position t of the targets reads row t - shift of e. Only *active* positions are computed; the others' results are
// what the caller put there.
#pragma once

#include <cstdint>

#include "tokcore/common/dtype.h"
#include "tokcore/cpu/threads.h"

namespace tokcore {

// A pair (position, 32 neighbouring vocabulary rows) is what the gradient filter keeps or drops.
inline constexpr int64_t kFilterTile = 32;

// The most active positions whose logits a caller may have stored.
inline constexpr int64_t kStoredPositions = 1024;

struct LinearLogitsParams {
  DType dtype;                      // of e and c
  const void* e;                    // [T, C]
  const void* c;                    // [V, C]
  int64_t stride_e_row;             // elements
  int64_t stride_c_row;             // elements
  const int64_t* indices;           // [T, K]
  const float* bias;                // [V] or null
  const float* class_weight;        // [V] or null: weights of logit_sum
  const int32_t* active_positions;  // [num_active], ascending
  int64_t num_positions;            // T
  int64_t num_active;
  int64_t hidden_size;  // C
  int64_t vocab_size;   // V
  int64_t num_indices;  // K
  int64_t shift;
  float softcap;  // 0: none
  float temperature;
  float filter_log_eps;  // log of the threshold on p; -inf: no filter
};

struct LinearLogprobsForwardParams : LinearLogitsParams {
  bool wants_entropy;
  bool wants_logit_sum;
  int64_t topk;
  float* lse;             // [T]
  float* entropy;         // [T]
  float* gathered;        // [T, K] logits z
  float* logit_sum;       // [T] sum_v class_weight_v z_v
  float* topk_values;     // [T, topk] logits z, descending
  int64_t* topk_indices;  // [T, topk]
  uint32_t* kept;         // [ceil(V/32), kept_words] bit a % 32 of word a / 32: tile kept for the a-th active position
  int64_t kept_words;
  float* stored_logits;  // [ceil(V/32), ceil(num_active/32), 32, 32] z by tile, num_active <= kStoredPositions; or null
};

// dL/dz[t,v] = p (grad_prob[t] + grad_plogp[t] (z - lse[t])) + grad_sum[t] w_v + sum_k grad_logits[t,k] [v =
// indices[t,k]], where p counts as 0 below the filter's threshold.
struct LinearLogprobsBackwardParams : LinearLogitsParams {
  const float* logits;       // [T, K] z at indices
  const float* lse;          // [T]
  const float* grad_prob;    // [T]
  const float* grad_plogp;   // [T] or null
  const float* grad_sum;     // [T] or null
  const float* grad_logits;  // [T, K]
  const uint32_t* kept;      // [ceil(V/32), kept_words] or null: every tile
  int64_t kept_words;
  float* stored_logits;     // as the forward left it, overwritten; or null: recompute
  void* grad_e;             // [T, C] contiguous, dtype of e, zero where no active position reads the row; or null
  void* grad_c;             // [V, C] contiguous, dtype of c; or null
  float* grad_c_sum;        // [V, C] contiguous, added to in place of storing grad_c; or null
  float* grad_bias;         // [V] added to, or null
  int64_t workspace_bytes;  // scratch to stay within; 0: as much as is fastest
};

// sum_t nll_scale_t (lse_t - z_t) + smooth_scale_t (sum_v w_v lse_t - logit_sum_t) + square_scale_t lse_t^2 and its
// gradients in one go, chunk of positions by chunk, each chunk's logits held in the workspace: 6TVC FLOPs, not 8TVC.
struct LinearCrossEntropyChunkedParams : LinearLogitsParams {  // K = 1
  const float* nll_scale;                                      // [T]
  const float* smooth_scale;                                   // [T] or null
  const float* square_scale;                                   // [T] or null
  float* workspace;                                            // [ceil(V/32), chunk_size / 32, 32, 32]
  int64_t chunk_size;                                          // positions, a multiple of 32, at most kStoredPositions
  double loss;                                                 // result
  float* lse;                                                  // [T]
  float* logits;                                               // [T] z of the targets
  float* logit_sum;                                            // [T], with smooth_scale
  void* grad_e;                                                // [T, C] or null
  void* grad_c;                                                // [V, C] or null
  float* grad_c_sum;  // [V, C] zeros; needed with grad_c when there are several chunks, and then used in its place
  float* grad_bias;   // [V] zeros, or null
};

void run_linear_logprobs_forward_cpu(const LinearLogprobsForwardParams& params, const cpu::Threads& threads);
void run_linear_logprobs_backward_cpu(const LinearLogprobsBackwardParams& params, const cpu::Threads& threads);

void run_linear_cross_entropy_chunked_cpu(LinearCrossEntropyChunkedParams& params, const cpu::Threads& threads);

// The least workspace in bytes within which the backward can run.
int64_t least_backward_workspace_cpu(const LinearLogprobsBackwardParams& params, const cpu::Threads& threads);

}  // namespace tokcore
