// 64 rows of a head as fp32 in shared memory: loaded in any order of tokens, rotated, padded with zeros.
#pragma once

#include "attention/attention_heads_cuda.cuh"
#include "attention/paro_codes_cuda.cuh"
#include "attention/paro_order_cuda.cuh"
#include "tokcore/cuda/reduce.cuh"

namespace tokcore::attention {

inline constexpr int kPrepareThreads = 256;
inline constexpr int kPrepareBlocks = 3;  // of a multiprocessor: more registers than ptxas would take by itself
inline constexpr int kPrepareWarps = kPrepareThreads / 32;
inline constexpr int kGroupRows = static_cast<int>(kParoGroup);
inline constexpr int kRowsOfWarp = kGroupRows / kPrepareWarps;  // warp, warp + 8, …

// Rows are one word longer than they hold, so that rows and columns are both read without conflicts.
struct ParoRows {
  float* cells;        // [64][width + 1]
  uint32_t* of_warps;  // [8] a number of each warp
  int* tokens;         // [64] of the rows
  int width, kept;     // channels with padding, rows that there are
  int lane, warp;

  static int bytes(int64_t width) {
    return (kGroupRows * (static_cast<int>(width) + 1) + kPrepareWarps + kGroupRows) * 4;
  }

  TOKCORE_DEVICE ParoRows(unsigned char* shared, int width_, int kept_)
      : cells(reinterpret_cast<float*>(shared)),
        of_warps(reinterpret_cast<uint32_t*>(cells + kGroupRows * (width_ + 1))),
        tokens(reinterpret_cast<int*>(of_warps + kPrepareWarps)),
        width(width_),
        kept(kept_),
        lane(static_cast<int>(threadIdx.x) % 32),
        warp(static_cast<int>(threadIdx.x) / 32) {}

  TOKCORE_DEVICE float& at(int row, int channel) const { return cells[row * (width + 1) + channel]; }
  // visit(row) of the warp's rows.
  template <class Visit>
  TOKCORE_DEVICE void for_own_rows(Visit&& visit) const {
#pragma unroll 1
    for (int row = warp; row < kGroupRows; row += kPrepareWarps) visit(row);
  }

  // Fills rows by token_of(row). Every warp fills its own: others see them after a barrier.
  template <class T, class TokenOf>
  TOKCORE_DEVICE void load(const T* head, int64_t stride, int head_dim, TokenOf&& token_of) const {
    __syncwarp();
    if (lane < kRowsOfWarp) {
      const int row = warp + lane * kPrepareWarps;
      tokens[row] = row < kept ? token_of(row) : 0;
    }
    __syncwarp();
    const bool by_pairs =
        sizeof(T) == 2 && head_dim % 2 == 0 && stride % 2 == 0 && reinterpret_cast<uintptr_t>(head) % 4 == 0;
    if (by_pairs) {
      load_units<T, 2>(head, stride, head_dim);
    } else {
      load_units<T, 1>(head, stride, head_dim);
    }
    __syncwarp();
  }

  // Turns the pairs of channels of the warp's rows.
  TOKCORE_DEVICE void rotate(const ParoRotation& rotation, int head_dim) const {
    if (rotation.cos == nullptr) return;
    const int half = head_dim / 2, table_width = static_cast<int>(rotation.width);
    const bool by_channel = table_width != half;
    for_own_rows([&](int row) {
      const int64_t line = tokens[row] - rotation.first;
      if (row >= kept || line < 0 || line >= rotation.rows) return;
      const float* cos = rotation.cos + line * table_width;
      const float* sin = rotation.sin + line * table_width;
      for (int pair = lane; pair < half; pair += 32) {
        const int left = rotation.interleaved ? 2 * pair : pair, right = rotation.interleaved ? left + 1 : pair + half;
        const int left_factor = by_channel ? left : pair, right_factor = by_channel ? right : pair;
        float &x0 = at(row, left), &x1 = at(row, right);
        const float y0 = __fsub_rn(__fmul_rn(x0, cos[left_factor]), __fmul_rn(x1, sin[left_factor]));
        const float y1 = __fadd_rn(__fmul_rn(x1, cos[right_factor]), __fmul_rn(x0, sin[right_factor]));
        x0 = y0;
        x1 = y1;
      }
    });
    __syncwarp();
  }

  // The greatest |x| of a row, as bits, by its warp.
  TOKCORE_DEVICE uint32_t most_of_row(int row) const {
    uint32_t most = 0;
    for (int channel = lane; channel < width; channel += 32) {
      const uint32_t bits = magnitude_bits(at(row, channel));
      most = bits > most ? bits : most;
    }
    return __reduce_max_sync(cuda::kAllLanes, most);
  }
  // The greatest number of all warps, each of which brings its own, the same in all lanes.
  TOKCORE_DEVICE uint32_t most_of_block(uint32_t most) const {
    if (lane == 0) of_warps[warp] = most;
    __syncthreads();
    return __reduce_max_sync(cuda::kAllLanes, of_warps[lane % kPrepareWarps]);
  }

 private:
  // A lane loads kUnit neighbouring channels of all of its warp's rows at once.
  template <class T, int kUnit>
  TOKCORE_DEVICE void load_units(const T* head, int64_t stride, int head_dim) const {
    struct alignas(sizeof(T) * kUnit) Unit {
      T x[kUnit];
    };
    for (int channel = lane * kUnit; channel < width; channel += 32 * kUnit) {
      Unit units[kRowsOfWarp];
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i) {
        const int row = warp + i * kPrepareWarps;
        units[i] = Unit{};
        if (row < kept && channel < head_dim) {
          units[i] = *reinterpret_cast<const Unit*>(head + tokens[row] * stride + channel);
        }
      }
#pragma unroll
      for (int i = 0; i < kRowsOfWarp; ++i) {
#pragma unroll
        for (int j = 0; j < kUnit; ++j) at(warp + i * kPrepareWarps, channel + j) = cuda::to_float(units[i].x[j]);
      }
    }
  }
};

}  // namespace tokcore::attention
