// How much attention every cached token gets from a few probe rows: column sums (and other reductions) of their
// softmax, without the matrix.
//
// Letters: B sequences, T probes of each, H query heads, Hkv heads of keys, G = H / Hkv, N tokens, D channels.
#pragma once

#include "tokcore/common/dtype.h"
#include "tokcore/cpu/threads.h"

namespace tokcore {

enum class SaliencyReduce {
  kSum,            // sum over the probes and the G heads of a group
  kNormalizedSum,  // the same over the number of (probe, head) that see the token
  kMax,
  kDecayed,  // sum of decay^(last probe's position - own position) p
};

struct KvSaliencyParams {
  DType dtype;
  const void* q;                                             // [B, T, H, D]
  const void* k;                                             // [B, N, Hkv, D]
  int64_t stride_q_sequence, stride_q_probe, stride_q_head;  // elements
  int64_t stride_k_sequence, stride_k_token, stride_k_head;
  const int32_t* positions;  // [B, T] last position that a probe sees; below 0: no probe
  const float* lse;          // [B, H, T] of the logits, or null: computed
  int64_t num_sequences, num_probes, num_q_heads, num_heads, num_tokens, head_dim;
  float scale;
  float temperature;
  bool adds_noise;  // Gumbel noise on the logits, one number a token and head of keys
  uint64_t seed;
  SaliencyReduce reduce;
  float decay;
  float* scores;  // [B, Hkv, N]
};

void run_kv_saliency_cpu(const KvSaliencyParams& params, const cpu::Threads& threads);

}  // namespace tokcore
