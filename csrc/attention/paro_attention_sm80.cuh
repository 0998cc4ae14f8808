// paro_attention from compute capability 8.0 on, for queries and keys of type QK and values of type PV: bytes, whose
// products are exact, or bfloat16.
//
// Grid: a block for each tile of queries of each head; the tiles of a head follow one another, so that its keys and
// values stay in L2. A tile of 128 queries walks the union of the blocks of keys that its two halves of 64 keep: a warp
// belongs to one half and sits out what its half does not keep. While a tile of keys and values is worked on, the next
// one is loaded.
#pragma once

#include "attention/attention_key_tiles.cuh"
#include "attention/paro_attention_task_cuda.cuh"
#include "attention/paro_weights_sm80.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/row_tile.cuh"

namespace tokcore::attention {

template <class QK, class PV, int kHeadDim_>
struct ParoTileSm80 {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kByteScores = sizeof(QK) == 1, kByteValues = sizeof(PV) == 1;
  static constexpr int kQueryBytes = kHeadDim * static_cast<int>(sizeof(QK));
  // Two strips where registers allow: what a warp reads of keys and values then serves both.
  static constexpr int kStrips = kHeadDim <= (kByteValues ? 64 : 128) ? 2 : 1;
  static constexpr int kRows = kQueryBytes <= 256 ? 128 : 64;
  static constexpr int kThreads = 32 * kRows / (16 * kStrips);
  static constexpr int kHalves = kRows / kHalfRows;
  static constexpr int kKeys = kByteValues || kHeadDim <= 64 ? 64 : 32;  // codes of values come 64 positions at a time

  using Queries = cuda::RowTile<QK, kRows, kHeadDim>;
  using Keys = cuda::RowTile<QK, kKeys, kHeadDim>;
  // Bytes of values lie by channel, 64 positions each; numbers by position.
  using Values =
      std::conditional_t<kByteValues, cuda::RowTile<int8_t, kHeadDim, kKeys>, cuda::RowTile<BFloat16, kKeys, kHeadDim>>;
  using Scores = cuda::StripFragment<kStrips, kKeys>;
  using Sums = cuda::StripFragment<kStrips, kHeadDim>;
  using Weights = std::conditional_t<kByteValues, ByteWeights<Scores, kByteScores>, FloatWeights<Scores, kByteScores>>;

  // Steps of scores in one stretch of code: with more of them, ptxas reads so far ahead that it spills.
  static constexpr int kStepsAtOnce = kHeadDim <= 128 ? Keys::kSteps : 4;

  static constexpr int kStageBytes = Keys::kBytes + Values::kBytes;
  static constexpr int kMostBytes = 99 * 1024;  // what every GPU from 8.0 on gives to a block
  static constexpr int kStages = Queries::kBytes + 2 * kStageBytes <= kMostBytes ? 2 : 1;
  static constexpr int kSharedBytes = Queries::kBytes + kStages * kStageBytes;
  static_assert(kSharedBytes <= kMostBytes);
};

// Fills a tile of keys from rows that lie one after the other; row_of(row) is which of them a row of the tile holds.
template <class Tile, int kThreads, class T, class RowOf>
TOKCORE_DEVICE void fill_keys(unsigned char* shared, const T* rows, int columns, RowOf&& row_of) {
  constexpr int kRowsAtOnce = kThreads / Tile::kRowChunks;
  static_assert(kThreads % Tile::kRowChunks == 0 && Tile::kRows % kRowsAtOnce == 0);
  const unsigned chunk = threadIdx.x % Tile::kRowChunks;
  unsigned row = threadIdx.x / Tile::kRowChunks;
  const int column = static_cast<int>(chunk) * Tile::kChunkElements;
#pragma unroll
  for (int i = 0; i < Tile::kRows / kRowsAtOnce; ++i) {
    const T* source = rows + row_of(static_cast<int>(row)) * columns + column;
    cuda::fill_chunk<true>(shared + Tile::offset(0, row, chunk), source, true, columns - column);
    row += kRowsAtOnce;
  }
}

// sums += grow * (weights times values), 16 channels at a time: integers of one tile, then floats.
template <class Tile, class Weights, int kStrips, int kColumns>
TOKCORE_DEVICE void multiply_byte_values(cuda::StripFragment<kStrips, kColumns>& sums, const Weights& weights,
                                         const unsigned char* values, int lane) {
#pragma unroll
  for (int group = 0; group < kColumns / 8; group += 2) {
    float products[kStrips][2][4];
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
      for (int i = 0; i < 8; ++i) products[strip][i / 4][i % 4] = cuda::kIntegerOrigin;
    }
#pragma unroll
    for (int step = 0; step < Weights::kSteps; ++step) {
      cuda::FragmentB pair[2];
      const auto first_of = [=](unsigned matrix) { return group * 8 + matrix / 2 * 8; };
      const auto chunk_of = [=](unsigned matrix) { return step * 2 + matrix % 2; };
      cuda::load_matrices<Tile, false>(values, lane, first_of, chunk_of, pair[0].x[0], pair[0].x[1], pair[1].x[0],
                                       pair[1].x[1]);
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          cuda::multiply_byte_fragments<cute::SM80_16x8x32_S32U8S8S32_TN>(products[strip][i],
                                                                          weights.packed[strip][step], pair[i].x);
        }
      }
    }
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& sum = sums.values[strip][group + i / 4][i % 4];
        const float product = products[strip][i / 4][i % 4] - cuda::kIntegerOrigin;
        sum = fmaf(product, weights.grow[strip * 2 + i % 4 / 2], sum);
      }
    }
  }
}

// Writes a warp's rows where their tokens are. A row that saw nothing is 0 whatever the scales are.
template <class T, class Sums>
TOKCORE_DEVICE void store_tokens(const Sums& sums, const float (&norm)[Sums::kSlots], const int (&tokens)[Sums::kSlots],
                                 const float* value_scale, T* to, int columns, int lane) {
#pragma unroll
  for (int group = 0; group < Sums::kGroups; ++group) {
    const int column = Sums::column_of(group, 0, lane);
    if (column >= columns) continue;
    const bool has_odd = column + 1 < columns;
    const float even_scale = value_scale == nullptr ? 1.0f : value_scale[column];
    const float odd_scale = value_scale == nullptr ? 1.0f : has_odd ? value_scale[column + 1] : 0.0f;
#pragma unroll
    for (int slot = 0; slot < Sums::kSlots; ++slot) {
      if (tokens[slot] < 0) continue;
      const float even = norm[slot] == 0.0f ? 0.0f : sums.at(slot, group, 0) * norm[slot] * even_scale;
      const float odd = norm[slot] == 0.0f ? 0.0f : sums.at(slot, group, 1) * norm[slot] * odd_scale;
      T* target = to + static_cast<int64_t>(tokens[slot]) * columns + column;
      if (columns % 2 == 0) {
        *reinterpret_cast<cuda::ElementPair<T>*>(target) = cuda::from_floats<T>(even, odd);
      } else {
        target[0] = cuda::from_float<T>(even);
        if (has_odd) target[1] = cuda::from_float<T>(odd);
      }
    }
  }
}

template <class QK, class PV, int kHeadDim>
__global__ void __launch_bounds__(ParoTileSm80<QK, PV, kHeadDim>::kThreads, ParoTileSm80<QK, PV, kHeadDim>::kStrips)
    paro_attention_sm80_kernel(const __grid_constant__ ParoTask task) {
  using Tile = ParoTileSm80<QK, PV, kHeadDim>;
  using Scores = typename Tile::Scores;
  using Sums = typename Tile::Sums;
  using Weights = typename Tile::Weights;
  TOKCORE_SHARED_MEMORY(shared);
  const ParoAttentionParams& params = task.params;
  const ParoShape& shape = params.shape;
  const int length = static_cast<int>(shape.length), num_tiles = (length + Tile::kRows - 1) / Tile::kRows;
  const int index = static_cast<int>(blockIdx.x) / num_tiles;  // batch entry and head
  const int first_row = (static_cast<int>(blockIdx.x) - index * num_tiles) * Tile::kRows;
  const int num_heads = static_cast<int>(shape.num_heads), num_kv_heads = static_cast<int>(shape.num_kv_heads);
  const int batch = index / num_heads, head = index - batch * num_heads;
  const int kv_head = head / (num_heads / num_kv_heads), pair = batch * num_kv_heads + kv_head;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp_row = static_cast<int>(threadIdx.x) / 32 * Scores::kRows;
  const int half = Tile::kHalves == 1 ? 0 : warp_row / kHalfRows;
  const int64_t padded = shape.padded_length();
  const int code_dim = static_cast<int>(shape.code_dim());

  const QK* q = static_cast<const QK*>(params.q_codes) + (index * padded + first_row) * code_dim;
  const QK* k = static_cast<const QK*>(params.k_codes) + pair * padded * code_dim;
  const PV* v = static_cast<const PV*>(params.v_codes) +
                pair * padded * (Tile::kByteValues ? static_cast<int>(shape.value_dim()) : code_dim);
  unsigned char* stages = shared + Tile::Queries::kBytes;
  const auto fill = [&](int stage, const KeyTile& at) {
    unsigned char* to = stages + stage * Tile::kStageBytes;
    if (at.exists()) {
      fill_keys<typename Tile::Keys, Tile::kThreads>(to, k + int64_t{at.first} * code_dim, code_dim, Weights::key_of);
      unsigned char* values = to + Tile::Keys::kBytes;
      if constexpr (Tile::kByteValues) {
        const int channels = static_cast<int>(shape.value_dim());
        cuda::fill_rows<typename Tile::Values, Tile::kThreads>(values, threadIdx.x, v + int64_t{at.first} * channels,
                                                               Tile::kKeys, channels, Tile::kKeys);
      } else {
        cuda::fill_rows<typename Tile::Values, Tile::kThreads>(values, threadIdx.x, v + int64_t{at.first} * code_dim,
                                                               code_dim, Tile::kKeys, code_dim);
      }
    }
    cute::cp_async_fence();
  };

  KeyTileWalk<Tile::kHalves, Tile::kKeys> walk(
      task.walk, batch, head, first_row, (first_row + Tile::kRows < length ? first_row + Tile::kRows : length) - 1);
  walk.advance();
  KeyTile current = walk.tile();
  if (current.exists()) {
    cuda::fill_rows<typename Tile::Queries, Tile::kThreads>(shared, threadIdx.x, q, code_dim,
                                                            static_cast<int>(padded) - first_row, code_dim);
  }
  fill(0, current);

  Sums sums;
  sums.clear();
  Weights weights;
  weights.clear();
#pragma unroll
  for (int slot = 0; slot < Sums::kSlots; ++slot) {
    const int row = first_row + warp_row + Sums::row_of(slot, lane);
    const bool scaled = Tile::kByteScores && row < length;
    weights.rows.base[slot] = scaled ? task.factor * params.q_scale[index * padded + row] : task.factor;
  }
  int stage = 0;
  while (current.exists()) {
    cute::cp_async_wait<0>();
    __syncthreads();
    walk.advance();
    if constexpr (Tile::kStages == 2) fill(1 - stage, walk.tile());
    if (current.is_kept_by(half) && first_row + warp_row < length) {
      const unsigned char* keys = stages + stage * Tile::kStageBytes;
      const unsigned char* values = keys + Tile::Keys::kBytes;
      Scores scores;
      scores.for_each([](float& score, int, int, int) { score = Tile::kByteScores ? cuda::kIntegerOrigin : 0.0f; });
      cuda::multiply_rows<typename Tile::Queries, typename Tile::Keys, Tile::kStepsAtOnce>(scores, shared, warp_row,
                                                                                           keys, lane);
      const float key_scale =
          Tile::kByteScores ? params.k_scale[pair * (padded / kParoGroup) + current.first / kParoGroup] : 1.0f;
      weights.add(scores, key_scale, length - current.first, lane, [&](int slot, float factor) {
#pragma unroll
        for (int group = 0; group < Sums::kGroups; ++group) {
          sums.at(slot, group, 0) *= factor;
          sums.at(slot, group, 1) *= factor;
        }
      });
      if constexpr (Tile::kByteValues) {
        multiply_byte_values<typename Tile::Values>(sums, weights, values, lane);
      } else {
        cuda::multiply_columns<typename Tile::Values>(sums, scores, values, 0, Tile::kKeys, lane);
      }
    }
    if constexpr (Tile::kStages == 2) {
      stage = 1 - stage;
    } else {
      __syncthreads();  // nobody reads what is filled next
      fill(0, walk.tile());
    }
    current = walk.tile();
  }
  cute::cp_async_wait<0>();

  // Results, in the order of the tokens.
  weights.finish();
  const ParoOrders::Walk& order = task.orders.walk_of(kv_head);
  int tokens[Sums::kSlots];
  float norm[Sums::kSlots];
#pragma unroll
  for (int slot = 0; slot < Sums::kSlots; ++slot) {
    const int row = first_row + warp_row + Sums::row_of(slot, lane);
    tokens[slot] = row < length ? task.orders.token(order, row) : -1;
    norm[slot] = weights.rows.norm(slot);
    if (params.lse != nullptr && row < length && lane % 4 == 0) {
      const float mean = params.mean_score == nullptr ? 0.0f : params.mean_score[int64_t{index} * length + row];
      params.lse[int64_t{index} * length + tokens[slot]] = weights.rows.log_sum_exp(slot) + params.scale * mean;
    }
  }
  const int head_dim = static_cast<int>(shape.head_dim);
  const float* value_scale = params.v_scale == nullptr ? nullptr : params.v_scale + int64_t{pair} * head_dim;
  const int64_t first_out = int64_t{index} * length * head_dim;
  const auto store = [&](auto* out) { store_tokens(sums, norm, tokens, value_scale, out + first_out, head_dim, lane); };
  if (params.dtype == DType::kFloat32) {
    store(static_cast<float*>(params.out));
  } else if (params.dtype == DType::kBFloat16) {
    store(static_cast<BFloat16*>(params.out));
  } else {
    store(static_cast<Float16*>(params.out));
  }
}

template <class QK, class PV, int kHeadDim>
void launch_paro_attention_sm80(const ParoTask& task, cuda::Stream stream) {
  using Tile = ParoTileSm80<QK, PV, kHeadDim>;
  const ParoShape& shape = task.params.shape;
  const int64_t blocks = shape.batch * shape.num_heads * ceil_div(shape.length, Tile::kRows);
  cuda::LaunchConfig config = cuda::launch_over(blocks, 1, Tile::kThreads, stream, "paro_attention_sm80");
  config.shared_bytes = Tile::kSharedBytes;
  cuda::launch<paro_attention_sm80_kernel<QK, PV, kHeadDim>>(config, task);
}

}  // namespace tokcore::attention
