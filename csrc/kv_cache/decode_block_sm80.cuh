// What the engines of decode_attention share: a block's tokens, shared memory, lanes and queries.
#pragma once

#include "kv_cache/decode_split_cuda.cuh"
#include "tokcore/cuda/codes.cuh"
#include "tokcore/cuda/mma_sm80.cuh"
#include "tokcore/cuda/online_softmax.cuh"
#include "tokcore/cuda/reduce.cuh"

namespace tokcore::kv_cache {

// Of a tile of tokens a warp scores the units of 16 tokens warp and warp + 4, and of the output it sums the units of 16
// channels warp, warp + 4, …: both as two tiles of eight columns.
template <int kStrips>
inline constexpr int kTokenUnits = static_cast<int>(most_tile_tokens(kStrips)) / 16 / kDecodeWarps;
inline constexpr int kChannelUnits = 256 / 16 / kDecodeWarps;

template <int kStrips>
using ScoreFragment = float[kStrips][kTokenUnits<kStrips>][2][4];
template <int kStrips>
using OutFragment = float[kStrips][kChannelUnits][2][4];

struct DecodeBlock {
  const DecodeWork& work;
  const KvCacheParams& cache;
  const DecodeSplit& split;
  unsigned char* shared;
  int head_dim, tile, first_row;
  int lane, warp, quad, within;  // row (or column) of a fragment, and lane of the quad

  TOKCORE_DEVICE DecodeBlock(const DecodeWork& work_, const DecodeSplit& split_, unsigned char* shared_, int tile_,
                             int rows)
      : work(work_),
        cache(work_.p.cache),
        split(split_),
        shared(shared_),
        head_dim(static_cast<int>(work_.p.cache.head_dim)),
        tile(tile_),
        first_row(split_.row_block * rows),
        lane(static_cast<int>(threadIdx.x) % 32),
        warp(static_cast<int>(threadIdx.x) / 32),
        quad(lane / 4),
        within(lane % 4) {}

  TOKCORE_DEVICE int num_tiles() const { return (split.count + tile - 1) / tile; }
  TOKCORE_DEVICE unsigned char* stage(int piece) const { return shared + piece % kStages * work.shared.stage_bytes; }
  template <class Value>
  TOKCORE_DEVICE Value* part(int offset) const {
    return reinterpret_cast<Value*>(shared + offset);
  }

  // 16 bytes into shared memory, zeros if `source` is null.
  TOKCORE_DEVICE void copy_chunk(unsigned char* target, const unsigned char* source) const {
    using Chunk = cute::uint128_t;
    const unsigned char* readable = source == nullptr ? static_cast<const unsigned char*>(cache.window_k) : source;
    cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<Chunk>::copy(*reinterpret_cast<const Chunk*>(readable),
                                                       *reinterpret_cast<Chunk*>(target), source != nullptr);
  }

  // Makes the queries ready, a warp a row: scaled by `channel_scale` and rotated if asked, then put(row, channel, x)
  // for every number; rows that there are none of are zeros. unit_of(greatest) is what a row is divided by.
  template <int kRows, class T, class UnitOf, class Put>
  TOKCORE_DEVICE void set_queries(bool coded, UnitOf&& unit_of, Put&& put) const {
    float* row = part<float>(work.shared.scratch) + warp * head_dim;
    float* units = part<float>(work.shared.units);
    const float* channel_scale = coded ? channel_scale_of(cache, true, split.head) : nullptr;
    const int group = work.rows / static_cast<int>(work.p.num_queries);
#pragma unroll 1
    for (int r = warp; r < kRows; r += kDecodeWarps) {
      const bool present = first_row + r < work.rows;
      const int query = (first_row + r) / group;
      const int64_t q_head = split.head * group + (first_row + r) % group;
      const T* from = static_cast<const T*>(work.p.q) + split.b * work.p.stride_q_sequence +
                      query * work.p.stride_q_query + q_head * work.p.stride_q_head;
      __syncwarp();
      float greatest = 0.0f;
#pragma unroll 1
      for (int i = lane; i < head_dim; i += 32) {
        float value = present ? cuda::to_float(from[i]) : 0.0f;
        if (channel_scale != nullptr) value = value * channel_scale[i];
        row[i] = coded && cache.rotates && rotation_flips(i) ? -value : value;
      }
      __syncwarp();
      if (coded && cache.rotates) cuda::hadamard_row(row, head_dim, work.norm, lane);
#pragma unroll 1
      for (int i = lane; i < head_dim; i += 32) greatest = fmaxf(greatest, fabsf(row[i]));
#pragma unroll 1
      for (int step = 1; step < 32; step *= 2) {
        greatest = fmaxf(greatest, __shfl_xor_sync(cuda::kAllLanes, greatest, step));
      }
      const float unit = unit_of(greatest);
      if (lane == 0) units[r] = unit * work.p.scale;
#pragma unroll 1
      for (int i = lane; i < head_dim; i += 32) put(r, i, row[i] / unit);
    }
  }
};

// 2^e as fp32 of an exponent in [-126, 127].
TOKCORE_DEVICE float power_of_two(int e) { return __uint_as_float(static_cast<uint32_t>(e + 127) << 23); }
// The exponent of a number, in [-100, 120]: what divides or multiplies by its power stays finite.
TOKCORE_DEVICE int exponent_of(float x) {
  const int e = static_cast<int>(__float_as_uint(x) >> 23 & 0xff) - 127;
  return e < -100 ? -100 : e > 120 ? 120 : e;
}

// Fragments of the queries in shared memory: [strips][steps][32 lanes] of 16 bytes, a lane's operand A.
template <class Element, int kElements>
struct QueryFragments {
  Element* data;
  int steps;

  TOKCORE_DEVICE Element& at(int strip, int step, int lane, int element) const {
    return data[((strip * steps + step) * 32 + lane) * kElements + element];
  }
  TOKCORE_DEVICE cuda::FragmentA operand(int strip, int step, int lane) const {
    const uint4 x = *reinterpret_cast<const uint4*>(&at(strip, step, lane, 0));
    return {{x.x, x.y, x.z, x.w}};
  }
};

}  // namespace tokcore::kv_cache
