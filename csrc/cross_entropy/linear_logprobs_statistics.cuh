// The forward's work on a finished tile of products: logits, their statistics by row, chosen logits, the greatest ones.
// The same for every architecture: it sees strips in registers.
#pragma once

#include "cross_entropy/linear_logits_cuda.cuh"
#include "tokcore/cuda/online_softmax.cuh"
#include "tokcore/cuda/reduce.cuh"
#include "tokcore/cuda/topk.cuh"

namespace tokcore::cross_entropy {

using cuda::kAllLanes;
using cuda::RankKey;
using cuda::SoftmaxState;

// Where a sweep over part of the vocabulary leaves what it found. Rows count active positions from `first_active` on. A
// *part* is what one warp saw of one vocabulary block: its statistics are sums of their own, so that they depend
// neither on how many blocks a CUDA block walks nor on the other rows of the batch. A *list* is what one warp saw in
// all.
struct SweepStatistics {
  LogitTransform transform;
  ActivePositions active;
  const float* class_weight;  // [V] or null: weights of logit_sum
  int64_t vocab_size;         // V
  int64_t first_active;
  int64_t num_rows;       // at most this many active positions
  int64_t padded_rows;    // num_rows in whole tiles
  float* maximum;         // [parts, padded_rows] the members of SoftmaxState
  float* sum;             // [parts, padded_rows]
  float* weighted;        // [parts, padded_rows] for the entropy, or null
  float* logit_sum;       // [parts, padded_rows] or null
  uint16_t* tile_maxima;  // [ceil(V/32), padded_rows] upper halves of fp32, rounded up; or null
  float* gathered;        // [T, K]
  RankKey* top_keys;      // [lists, padded_rows, topk] or null
  int64_t topk;
  float* stored_logits;  // [num_rows, stride_stored] z; or null
  int64_t stride_stored;
};

// The least 16 upper bits of a fp32 number that is not below `value`.
TOKCORE_DEVICE uint16_t upper_bound_bits(float value) {
  const uint32_t bits = __float_as_uint(value);
  return static_cast<uint16_t>(((bits >> 31) != 0 ? bits : bits + 0xffffu) >> 16);
}

// Shared memory of one warp that ranks.
template <class Fragment>
struct RankingScratch {
  float to_beat[Fragment::kRows];    // what a logit must reach to enter its row's list
  float staged[Fragment::kColumns];  // the row at hand
};

template <class Fragment>
class RowStatistics {
 public:
  // first_row: of the warp's fragments. What ranks highest goes to list `list`; scratch[warp of the block] is only used
  // if anything ranks.
  TOKCORE_DEVICE RowStatistics(const SweepStatistics& params, int64_t first_row, int list,
                               RankingScratch<Fragment>* scratch, int lane)
      : params_(params), first_row_(static_cast<int>(first_row)), list_(list), lane_(lane), scratch_(scratch) {
    reset();
    if (params.top_keys == nullptr || first_row >= params.padded_rows) return;
    for (int64_t i = lane; i < Fragment::kRows * params.topk; i += 32) keys_of(0)[i] = 0;
    for (int row = lane; row < Fragment::kRows; row += 32) my_scratch().to_beat[row] = -kInfinity;
    __syncwarp();
  }

  // Adds a tile of products whose first column is vocabulary row `vocab_row`, to what will be stored as `part`.
  TOKCORE_DEVICE void add(Fragment& z, int64_t vocab_row, int64_t part) {
    const int columns = static_cast<int>(max(min(params_.vocab_size - vocab_row, Fragment::kColumns), 0));
    params_.transform.apply(z, vocab_row, columns, lane_);
    if (columns < Fragment::kColumns) clear_columns(z, columns);
    if (params_.stored_logits != nullptr) store_logits(z, vocab_row);
    gather(z, vocab_row);
    if (params_.top_keys != nullptr) rank_rows(z, vocab_row, columns);
    if (params_.logit_sum != nullptr) add_logits(z, vocab_row, columns, part);
#pragma unroll
    for (int first = 0; first < Fragment::kSlots; first += 4) {
      SoftmaxState mine;
#pragma unroll
      for (int slot = first; slot < first + 4 && slot < Fragment::kSlots; ++slot) {
        const SoftmaxState sums = sum_row(z, slot, vocab_row);
        if (lane_ % 4 == slot % 4) mine = sums;
      }
      states_[first / 4].merge(mine);
    }
    part_is_new_ = false;
  }

  // Leaves the statistics as those of `part` and starts anew.
  TOKCORE_DEVICE void store_part(int64_t part) {
#pragma unroll
    for (int i = 0; i < kStates; ++i) {
      const int slot = 4 * i + lane_ % 4;
      if (slot >= Fragment::kSlots) continue;
      const int64_t at = part * params_.padded_rows + first_row_ + Fragment::row_of(slot, lane_);
      params_.maximum[at] = states_[i].maximum;
      params_.sum[at] = states_[i].sum;
      if (params_.weighted != nullptr) params_.weighted[at] = states_[i].weighted;
    }
    reset();
  }

 private:
  static constexpr float kInfinity = __builtin_inff();
  static constexpr int kTiles = Fragment::kColumns / static_cast<int>(kFilterTile);
  static constexpr int kStates = (Fragment::kSlots + 3) / 4;  // of rows that a lane keeps

  TOKCORE_DEVICE void reset() {
#pragma unroll
    for (int i = 0; i < kStates; ++i) states_[i] = SoftmaxState();
    part_is_new_ = true;
  }

  // Rows of the fragment that are active positions. Asked for once a tile: no register is kept for it.
  TOKCORE_DEVICE int num_rows() const {
    const int64_t count = params_.active.count_from(params_.first_active, params_.num_rows);
    return static_cast<int>(min(count - first_row_, Fragment::kRows));
  }
  TOKCORE_DEVICE RankingScratch<Fragment>& my_scratch() const { return scratch_[threadIdx.x / 32]; }
  TOKCORE_DEVICE RankKey* keys_of(int row) const {
    return params_.top_keys + (list_ * params_.padded_rows + first_row_ + row) * params_.topk;
  }

  // Columns past the vocabulary have no part in anything.
  TOKCORE_DEVICE void clear_columns(Fragment& z, int columns) const {
    z.for_each([&](float& value, int, int group, int odd) {
      if (Fragment::column_of(group, odd, lane_) >= columns) value = -kInfinity;
    });
  }

  // Columns past the vocabulary are stored too as far as the row reaches: as -inf.
  TOKCORE_DEVICE void store_logits(const Fragment& z, int64_t vocab_row) const {
    const int rows = num_rows();
#pragma unroll
    for (int slot = 0; slot < Fragment::kSlots; ++slot) {
      const int row = Fragment::row_of(slot, lane_);
      float* to = params_.stored_logits + int64_t{first_row_ + row} * params_.stride_stored + vocab_row;
#pragma unroll
      for (int group = 0; group < Fragment::kGroups; ++group) {
        const int column = Fragment::column_of(group, 0, lane_);
        if (row < rows && vocab_row + column < params_.stride_stored) {
          *reinterpret_cast<float2*>(to + column) = {z.at(slot, group, 0), z.at(slot, group, 1)};
        }
      }
    }
  }

  TOKCORE_DEVICE void gather(Fragment& z, int64_t vocab_row) const {
    const int rows = num_rows();
    const auto active_at = [&](int row) { return row < rows ? params_.first_active + first_row_ + row : -1; };
    for_each_index<Fragment>(
        params_.active, vocab_row, lane_, active_at, [&](int row, int column, int active, int64_t k) {
          z.visit_cell(row, column, lane_, [&](float value) {
            params_.gathered[params_.active.positions[active] * params_.active.num_indices + k] = value;
          });
        });
  }

  // The state of the tile's part of a row, in the whole quad. It is summed from zero before it joins what came before:
  // a sum that has reached 1 no longer feels the addition of single small terms.
  TOKCORE_DEVICE SoftmaxState sum_row(const Fragment& z, int slot, int64_t vocab_row) const {
    SoftmaxState state;
    const float largest =
        params_.tile_maxima != nullptr ? take_tile_maxima(z, slot, vocab_row) : cuda::quad_max(lane_maximum(z, slot));
    state.maximum = SoftmaxState::bounded(largest);
    const float reference = SoftmaxState::reference(state.maximum);
    if (params_.weighted != nullptr) {
#pragma unroll
      for (int i = 0; i < 2 * Fragment::kGroups; ++i) {
        const float distance = fmaf(z.at(slot, i / 2, i % 2), cuda::kLog2E, -reference);
        const float weight = cuda::exp2_approx(distance);
        state.sum += weight;
        // The power is 0 long before -300; the bound keeps 0 * inf away.
        state.weighted = fmaf(weight, fmaxf(distance, -300.0f), state.weighted);
      }
      state.weighted = cuda::quad_sum(state.weighted);
    } else {
#pragma unroll
      for (int i = 0; i < 2 * Fragment::kGroups; ++i) {
        state.sum += cuda::exp2_approx(fmaf(z.at(slot, i / 2, i % 2), cuda::kLog2E, -reference));
      }
    }
    state.sum = cuda::quad_sum(state.sum);
    return state;
  }

  static TOKCORE_DEVICE float lane_maximum(const Fragment& z, int slot, int first_group = 0,
                                           int last_group = Fragment::kGroups) {
    float largest = -kInfinity;
#pragma unroll
    for (int group = first_group; group < last_group; ++group) {
      largest = fmaxf(largest, fmaxf(z.at(slot, group, 0), z.at(slot, group, 1)));
    }
    return largest;
  }

  // The row's maximum; leaves those of each 32 vocabulary rows behind.
  TOKCORE_DEVICE float take_tile_maxima(const Fragment& z, int slot, int64_t vocab_row) const {
    constexpr int kGroupsPerTile = static_cast<int>(kFilterTile) / 8;
    const int64_t at = first_row_ + Fragment::row_of(slot, lane_);
    float largest = -kInfinity;
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const float all = cuda::quad_max(lane_maximum(z, slot, tile * kGroupsPerTile, (tile + 1) * kGroupsPerTile));
      largest = fmaxf(largest, all);
      if (lane_ % 4 == tile % 4 && vocab_row + tile * kFilterTile < params_.vocab_size) {
        params_.tile_maxima[(vocab_row / kFilterTile + tile) * params_.padded_rows + at] = upper_bound_bits(all);
      }
    }
    return largest;
  }

  // Few calls want this sum: it is kept in memory, not in registers.
  TOKCORE_DEVICE void add_logits(const Fragment& z, int64_t vocab_row, int columns, int64_t part) const {
    float sums[Fragment::kSlots] = {};
#pragma unroll
    for (int i = 0; i < 2 * Fragment::kGroups; ++i) {
      const int column = Fragment::column_of(i / 2, i % 2, lane_);
      if (column >= columns) continue;
      const float weight = params_.class_weight != nullptr ? params_.class_weight[vocab_row + column] : 1.0f;
#pragma unroll
      for (int slot = 0; slot < Fragment::kSlots; ++slot)
        sums[slot] = fmaf(weight, z.at(slot, i / 2, i % 2), sums[slot]);
    }
    float* to = params_.logit_sum + part * params_.padded_rows + first_row_;
#pragma unroll
    for (int slot = 0; slot < Fragment::kSlots; ++slot) {
      const float sum = cuda::quad_sum(sums[slot]);
      const int row = Fragment::row_of(slot, lane_);
      if (lane_ % 4 == 0) to[row] = part_is_new_ ? sum : to[row] + sum;
    }
  }

  // Only rows of which a lane holds a value that reaches the one to beat, or a NaN, are looked at.
  TOKCORE_DEVICE void rank_rows(const Fragment& z, int64_t vocab_row, int columns) {
    const int rows = num_rows();
#pragma unroll
    for (int slot = 0; slot < Fragment::kSlots; ++slot) {
      const int row = Fragment::row_of(slot, lane_);
      const float to_beat = my_scratch().to_beat[row];
      bool reaches = false;
#pragma unroll
      for (int i = 0; i < 2 * Fragment::kGroups; ++i) reaches = reaches || !(z.at(slot, i / 2, i % 2) < to_beat);
      rank_slot(z, slot, vocab_row, columns, row < rows && reaches);
    }
  }

  TOKCORE_DEVICE void rank_slot(const Fragment& z, int slot, int64_t vocab_row, int columns, bool reaches) {
    unsigned lanes = __ballot_sync(kAllLanes, reaches);
    while (lanes != 0) {
      const int quad = (__ffs(static_cast<int>(lanes)) - 1) / 4;
      lanes &= ~(0xfu << (4 * quad));
      if (lane_ / 4 == quad) {
#pragma unroll
        for (int i = 0; i < 2 * Fragment::kGroups; ++i) {
          my_scratch().staged[Fragment::column_of(i / 2, i % 2, lane_)] = z.at(slot, i / 2, i % 2);
        }
      }
      __syncwarp();
      rank_row(Fragment::row_of(slot, quad * 4), vocab_row, columns);
      __syncwarp();
    }
  }

  TOKCORE_DEVICE void rank_row(int row, int64_t vocab_row, int columns) {
    RankKey* keys = keys_of(row);
    for (int first = 0; first < columns; first += 32) {
      const int column = first + lane_;
      const float value = column < columns ? my_scratch().staged[column] : 0.0f;
      const bool reaches = column < columns && !(value < my_scratch().to_beat[row]);
      unsigned candidates = __ballot_sync(kAllLanes, reaches);
      for (; candidates != 0; candidates &= candidates - 1) {
        const int from = __ffs(static_cast<int>(candidates)) - 1;
        const float candidate = __shfl_sync(kAllLanes, value, from);
        cuda::insert_ranked(keys, params_.topk,
                            cuda::rank_key(candidate, static_cast<uint32_t>(vocab_row + first + from)), lane_);
      }
    }
    const float to_beat = cuda::value_to_beat(keys, params_.topk);
    __syncwarp();
    if (lane_ == 0) my_scratch().to_beat[row] = to_beat;
  }

  const SweepStatistics& params_;
  int first_row_;
  int list_;
  int lane_;
  bool part_is_new_;
  RankingScratch<Fragment>* scratch_;
  // Of four slots each lane of a quad keeps the state of one: of slots lane % 4, lane % 4 + 4, …
  SoftmaxState states_[kStates];
};

}  // namespace tokcore::cross_entropy
