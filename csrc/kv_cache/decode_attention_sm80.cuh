// decode_attention from compute capability 8.0 on: a block attends a split of the cache, with 16 or 32 rows of queries.
//
// A tile of tokens is two pieces of shared memory, keys with all scales, then values; cp.async keeps three pieces on
// their way. Warps score different tokens, agree on the maximum of each row, leave weights in shared memory, and then
// sum different channels over all tokens. Nothing is written before the split ends.
#pragma once

#include "kv_cache/decode_codes_sm80.cuh"
#include "kv_cache/decode_numbers_sm80.cuh"
#include "tokcore/cuda/launch_over.h"

namespace tokcore::kv_cache {

// What a block leaves for the merge.
struct DecodePart {
  const DecodeWork& work;
  int64_t first_row;  // of states and outputs
  int rows;           // of the head

  TOKCORE_DEVICE DecodePart(const DecodeWork& work_, const DecodeSplit& split)
      : work(work_),
        first_row(((split.b * work_.p.cache.num_heads + split.head) * work_.most_splits + split.index) * work_.rows),
        rows(work_.rows) {}
  TOKCORE_DEVICE void put_state(int row, float maximum, float sum) const {
    if (row < rows) work.states[first_row + row] = make_float2(maximum, sum);
  }
  TOKCORE_DEVICE float* output(int row) const { return work.outputs + (first_row + row) * work.p.cache.head_dim; }
};

template <int kStrips, class Engine>
TOKCORE_DEVICE void attend_split(const DecodeBlock& b, const SequenceState& state) {
  const DecodeWork& work = b.work;
  const Engine engine(b);
  constexpr int kRows = 16 * kStrips, kSlots = 2 * kStrips, kUnits = kTokenUnits<kStrips>;
#pragma unroll 1
  for (int piece = 0; piece < kStages - 1; ++piece) {
    engine.load(piece);
    cute::cp_async_fence();
  }
  engine.set_queries();
  engine.clear_zeros();

  const auto row_of = [&](int slot) { return slot / 2 * 16 + slot % 2 * 8 + b.quad; };
  const DecodeSight& sight = state.sight;
  const int group = work.rows / static_cast<int>(work.p.num_queries);
  int query_of[kSlots];
  float maximum[kSlots], total[kSlots];
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    query_of[slot] = (b.first_row + row_of(slot)) / group;
    maximum[slot] = -cuda::kFarthest;
    total[slot] = 0.0f;
  }
  OutFragment<kStrips> out = {};
  int exponent = -100;
  float* maxima = b.part<float>(work.shared.maxima);
  int* exponents = b.part<int>(work.shared.exponents);
  int* places = b.part<int>(work.shared.positions);
  // Listed positions lie before the window: they are read only where that does not say who sees them.
  const bool lists = sight.window != 0 || state.start > sight.first_query;
  const bool has_strangers = sight.num_queries < static_cast<int>(work.p.num_queries);

#pragma unroll 1
  for (int tile = 0; tile < b.num_tiles(); ++tile) {
    bool masks = has_strangers;
    if (static_cast<int>(threadIdx.x) < b.tile) {
      const int place = b.split.place_of(b.cache, tile * b.tile + static_cast<int>(threadIdx.x), lists);
      places[threadIdx.x] = place;
      masks = masks || place < 0 || !sight.all_see(place);
    }
    // Scores.
    cute::cp_async_wait<kStages - 2>();
    masks = __syncthreads_or(masks) != 0;  // the keys have arrived for all, and all are done with the tile before
    engine.load(2 * tile + 3);
    cute::cp_async_fence();
    ScoreFragment<kStrips> scores;
    engine.score(2 * tile, scores);
    if (work.p.softcap > 0.0f) {
      const float inverse = 1.0f / work.p.softcap;
#pragma unroll
      for (int i = 0; i < kStrips * kUnits * 8; ++i) {
        float& score = scores[i / (kUnits * 8)][i / 8 % kUnits][i / 4 % 2][i % 4];
        score = work.p.softcap * cuda::tanh_accurate(score * inverse);
      }
    }
    // A bit for each of the lane's tokens and rows: seen, and in a page that is nowhere. Not unrolled: few tiles need
    // it.
    uint32_t seen[kSlots], lost = 0;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) seen[slot] = masks ? 0u : ~0u;
    if (masks) {
#pragma unroll 1
      for (int i = 0; i < kUnits * 4; ++i) {
        const int token = engine.token_of(i / 4, i / 2 % 2, i % 2);
        if (token >= b.tile) break;
        const int place = places[token];
        if (place == kNoToken) continue;
        if (place == kLostToken) lost |= 1u << i;
#pragma unroll
        for (int slot = 0; slot < kSlots; ++slot) {
          const bool sees =
              query_of[slot] < sight.num_queries && (place == kLostToken || sight.sees(place, query_of[slot]));
          seen[slot] |= static_cast<uint32_t>(sees) << i;
        }
      }
    }
    float greatest[kSlots];
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) greatest[slot] = -cuda::kFarthest;
#pragma unroll
    for (int i = 0; i < kUnits * 4; ++i) {
      const bool inside = (b.warp + i / 4 * kDecodeWarps) * 16 < b.tile;
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) {
        float& score = scores[slot / 2][i / 4][i / 2 % 2][slot % 2 * 2 + i % 2];
        if ((lost >> i & 1) != 0) score = __uint_as_float(0x7fffffffu);
        if (!inside || (seen[slot] >> i & 1) == 0) score = __uint_as_float(0xff800000u);
        greatest[slot] = fmaxf(greatest[slot], score);
      }
    }
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      greatest[slot] = cuda::quad_max(greatest[slot]);
      if (b.within == 0) maxima[b.warp * kRows + row_of(slot)] = greatest[slot];
    }
    const int found = engine.find_exponent(2 * tile);
    if (b.lane == 0) exponents[b.warp] = found;
    __syncthreads();

    // Weights.
    const int before = exponent;
    float shrink[kSlots];
#pragma unroll
    for (int i = 0; i < kDecodeWarps; ++i) exponent = exponents[i] > exponent ? exponents[i] : exponent;
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      float raised = maximum[slot];
#pragma unroll
      for (int i = 0; i < kDecodeWarps; ++i) raised = fmaxf(raised, maxima[i * kRows + row_of(slot)]);
      raised = cuda::SoftmaxState::bounded(raised);
      const float reference = cuda::SoftmaxState::reference(raised);
      shrink[slot] = cuda::exp2_approx(cuda::SoftmaxState::reference(maximum[slot]) - reference);
      maximum[slot] = raised;
      total[slot] *= shrink[slot];
#pragma unroll
      for (int i = 0; i < kUnits * 4; ++i) {
        float& weight = scores[slot / 2][i / 4][i / 2 % 2][slot % 2 * 2 + i % 2];
        weight = cuda::exp2_approx(fmaf(weight, cuda::kLog2E, -reference));
        total[slot] += weight;
      }
    }
    engine.put_weights(2 * tile, exponent, shrink, scores);
    cute::cp_async_wait<kStages - 2>();
    __syncthreads();  // weights and values are there for all, and all are done with the keys
    engine.load(2 * tile + 4);
    cute::cp_async_fence();

    // Outputs.
    const float rescale = cuda::exp2_approx(static_cast<float>(before - exponent));
#pragma unroll
    for (int slot = 0; slot < kSlots; ++slot) {
      const float factor = shrink[slot] * rescale;
#pragma unroll
      for (int i = 0; i < kChannelUnits * 4; ++i) out[slot / 2][i / 4][i / 2 % 2][slot % 2 * 2 + i % 2] *= factor;
    }
    if (masks) engine.set_aside(2 * tile + 1, out);
    engine.accumulate(2 * tile + 1, out);
  }
  cute::cp_async_wait<0>();

  // What the warps summed apart.
  float* totals = b.part<float>(work.shared.totals);
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const float sum = cuda::quad_sum(total[slot]);
    if (b.within == 0) totals[b.warp * kRows + row_of(slot)] = sum;
  }
  __syncthreads();
  const DecodePart part(work, b.split);
  const float out_unit = engine.unit_of(exponent);
#pragma unroll
  for (int slot = 0; slot < kSlots; ++slot) {
    const int row = b.first_row + row_of(slot);
    if (row >= work.rows) continue;
    if (b.warp == 0 && b.within == 0) {
      float sum = 0.0f;
      for (int i = 0; i < kDecodeWarps; ++i) sum += totals[i * kRows + row_of(slot)];
      part.put_state(row, maximum[slot], sum);
    }
    float* to = part.output(row);
#pragma unroll
    for (int unit = 0; unit < kChannelUnits; ++unit) {
      const int first = (b.warp + unit * kDecodeWarps) * 16;
      if (first >= b.head_dim) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int channel = first + engine.channel_of(i / 2, i % 2);
        to[channel] = fmaf(out[slot / 2][unit][i / 2][slot % 2 * 2 + i % 2], out_unit, engine.zero_of(slot, channel));
      }
    }
  }
}

// Grid: a block for each block of rows of each split of each head of each sequence.
template <class T, int kStrips>
__global__ void __launch_bounds__(kDecodeThreads, 2)
    decode_attention_sm80_kernel(const __grid_constant__ DecodeWork work) {
  TOKCORE_SHARED_MEMORY(shared);
  DecodeSplit split(work, blockIdx.x);
  const SequenceState state(work.p, split.b);
  constexpr int kRows = 16 * kStrips;
  if (state.broken || !split.open(work, state)) {
    const bool reports = state.broken && split.index + 1 == work.most_splits;
    const DecodePart part(work, split);
    for (int row = static_cast<int>(threadIdx.x); row < kRows; row += kDecodeThreads) {
      part.put_state(split.row_block * kRows + row, 0.0f, reports ? __uint_as_float(0x7fffffffu) : 0.0f);
    }
    return;
  }
  const int row_bytes = static_cast<int>(work.p.cache.head_dim * sizeof(T));
  if constexpr (sizeof(T) == 2) {
    if (split.coded) {
      const KvTier& tier = work.p.cache.tiers[split.source];
      const int tile = static_cast<int>(code_tile_tokens(tier, work.p.cache.head_dim, kStrips));
      attend_split<kStrips, CodeEngine<T, kStrips>>({work, split, shared, tile, kRows}, state);
      return;
    }
  }
  const int tile = static_cast<int>(tile_tokens(row_bytes, kStrips));
  attend_split<kStrips, NumberEngine<T, kStrips>>({work, split, shared, tile, kRows}, state);
}

template <class T, int kStrips>
void launch_decode_splits(const DecodeWork& work, cuda::Stream stream) {
  const int64_t blocks = work.p.cache.num_sequences * work.p.cache.num_heads * work.most_splits * work.row_blocks;
  cuda::LaunchConfig config = cuda::launch_over(blocks, 1, kDecodeThreads, stream, "decode_attention_sm80_kernel");
  config.shared_bytes = static_cast<size_t>(work.shared.bytes);
  cuda::launch<decode_attention_sm80_kernel<T, kStrips>>(config, work);
}

}  // namespace tokcore::kv_cache
