// What the kernels of kv_saliency share: a row of logits is a probe and a head, an item a sequence and a head of keys.
#pragma once

#include "tokcore/common/math.h"
#include "tokcore/cuda/kernel.h"
#include "tokcore/cuda/workspace.h"
#include "tokcore/kv_cache/kv_saliency_cuda.h"

namespace tokcore::kv_cache {

// Tokens of a split of the first sweep: what it finds of a row is merged in order.
inline constexpr int64_t kSaliencySplitTokens = 1024;
// The parts that a split leaves of a row: one for each warp across the columns of a tile.
inline constexpr int kSaliencyParts = 4;

// What the second sweep needs to know of a row.
struct SaliencyRow {
  float lse;
  float weight;    // decay^(latest position - own one), or 1
  int32_t last;    // last token that it sees; -1: none
  int32_t latest;  // of the rows of its sequence
};

struct SaliencyWork {
  KvSaliencyParams p;
  int group;              // G
  int rows;               // T G of an item
  int num_splits;         // of the first sweep
  bool aligned;           // rows of 16-byte chunks
  SaliencyRow* row_data;  // [items, rows]
  float2* states;         // [items, splits, parts, rows] maximum and sum
  float* noise;           // [items, N] or null

  TOKCORE_HOST_DEVICE int64_t items() const { return p.num_sequences * p.num_heads; }
  SaliencyWork(const KvSaliencyParams& params, cuda::WorkspacePlan& plan) : p(params) {
    group = static_cast<int>(p.num_q_heads / p.num_heads);
    rows = static_cast<int>(p.num_probes * group);
    num_splits = static_cast<int>(ceil_div(p.num_tokens, kSaliencySplitTokens));
    const int64_t size = static_cast<int64_t>(size_of(p.dtype));
    const auto divides = [&](int64_t stride) { return stride * size % 16 == 0; };
    aligned = divides(p.head_dim) && divides(p.stride_q_sequence) && divides(p.stride_q_probe) &&
              divides(p.stride_q_head) && divides(p.stride_k_sequence) && divides(p.stride_k_token) &&
              divides(p.stride_k_head) && reinterpret_cast<uintptr_t>(p.q) % 16 == 0 &&
              reinterpret_cast<uintptr_t>(p.k) % 16 == 0;
    row_data = plan.take<SaliencyRow>(items() * rows);
    states = plan.take<float2>(p.lse == nullptr ? items() * num_splits * kSaliencyParts * rows : 0);
    noise = p.adds_noise ? plan.take<float>(items() * p.num_tokens) : nullptr;
  }
};

}  // namespace tokcore::kv_cache
