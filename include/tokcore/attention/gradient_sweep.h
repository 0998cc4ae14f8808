// One owner of gradients: a panel of 32 keys (grad_k, grad_v) or of 32 queries (grad_q) that walks the tiles of the
// other side which the mask keeps. With the owner in lanes and the other side in rows,
//
//   scores    = A1 X1     A1 = rows of q (k), X1 = panel of k^T (q^T)
//   slopes    = A2 X2     A2 = rows of grad_out (v), X2 = panel of v^T (grad_out^T): d loss / d weights
//   weights   = exp(scale scores + shift), shift = -lse of the query
//   d scores  = weights (slopes - delta), delta = sum(grad_out out) - grad_lse of the query
//   sums1^T  += C1 d scores   C1 = columns of q (k): grad_k (grad_q) before the scale
//   sums2^T  += C2 weights    C2 = columns of grad_out: grad_v; keys only
//
// Every sum is taken by one owner in ascending order of heads and tiles.
#pragma once

#include "tokcore/attention/tile_softmax.h"
#include "tokcore/cpu/scratch.h"
#include "tokcore/cpu/transpose.h"

namespace tokcore::cpu::TOKCORE_ISA {

// Of every query, padded to whole tiles: what the forward left, in the form the tiles want.
struct QueryStatistics {
  float* shift;  // [B, H, padded M] -lse; -inf where nothing counts
  float* delta;  // [B, H, padded M]
};

// One head of the other side.
template <class Engine, class T>
struct OtherSide {
  RowTiles<Engine, T> rows1, rows2;
  TransposedTiles<Engine, T> columns1, columns2;
};

template <class Engine, class T, bool kOwnsKeys>
class GradientSweep {
 public:
  using Operand = typename Engine::Operand;

  GradientSweep(const BlockSparseAttentionBackwardParams& params, Arena& arena)
      : params_(params),
        head_steps_(ceil_div(params.shape.head_dim, kBlock)),
        factor_(params.scale * (kRounds ? kLog2E : 1.0f)) {
    const int64_t length = kOwnsKeys ? params.shape.query_length : params.shape.key_length;
    const int64_t panel = head_steps_ * kTileCells;
    panel1_ = arena.take<Operand>(panel);
    panel2_ = arena.take<Operand>(panel);
    sums1_ = arena.take<float>(panel);
    sums2_ = arena.take<float>(panel);
    scores_ = arena.take<float>(kTileCells);
    slopes_ = arena.take<float>(kTileCells);
    score_gradients_ = arena.take<Operand>(kUnitTiles * kTileCells);
    weights_ = arena.take<Operand>(kUnitTiles * kTileCells);
    tiles_ = arena.take<int32_t>(ceil_div(length, kBlock));
  }

  // The owner's 32 rows from `first` on, of matrices that make X1 and X2.
  void begin(const Rows<T>& rows1, const Rows<T>& rows2, int64_t first) {
    first_owned_ = first;
    has_sums_ = false;
    const T* pointers[kBlock];
    rows1.tile(first / kBlock, pointers);
    Engine::pack_transposed(pointers, params_.shape.head_dim, panel1_);
    rows2.tile(first / kBlock, pointers);
    Engine::pack_transposed(pointers, params_.shape.head_dim, panel2_);
  }

  // Adds what one query head contributes; `statistics` are that head's.
  void add(const OtherSide<Engine, T>& other, const QueryStatistics& statistics, int64_t batch, int64_t head) {
    const int num_tiles = list_tiles(batch, head);
    for (int first = 0; first < num_tiles; first += kUnitTiles) {
      const int count = static_cast<int>(min(num_tiles - first, kUnitTiles));
      for (int i = 0; i < count; ++i) make_tile(other, statistics, tiles_[first + i], i);
      const StepList steps = {tiles_ + first, 0, count, true};
      for (int64_t chunk = 0; chunk < head_steps_; ++chunk) {
        if (wants_first()) {
          Engine::multiply(other.columns1.columns(chunk), score_gradients_, steps, has_sums_,
                           sums1_ + chunk * kTileCells, NoStep());
        }
        if (wants_second()) {
          Engine::multiply(other.columns2.columns(chunk), weights_, steps, has_sums_, sums2_ + chunk * kTileCells,
                           NoStep());
        }
      }
      has_sums_ = true;
    }
  }

  // Writes the owner's rows of the gradients, whose first rows (of the head) are given; null where not wanted.
  void write(T* gradient1, T* gradient2) {
    if (gradient1 != nullptr) write_sums(sums1_, gradient1, params_.scale);
    if (gradient2 != nullptr) write_sums(sums2_, gradient2, 1.0f);
  }

 private:
  static constexpr int kUnitTiles = Engine::kStepsPerPass < 8 ? Engine::kStepsPerPass : 8;
  // The panels hold 16 bits a weight: then the product of scale and log2(e) need not be taken more exactly than it is.
  static constexpr bool kRounds = sizeof(Operand) == 2;
  static constexpr int kTogether = Vec::kLanes == 16 ? 2 : 1;  // vectors of a row that are worked on at a time

  bool wants_first() const { return kOwnsKeys ? params_.grad_k != nullptr : true; }
  bool wants_second() const { return kOwnsKeys && params_.grad_v != nullptr; }

  int list_tiles(int64_t batch, int64_t head) {
    const AttentionShape& shape = params_.shape;
    const BlockMaskView& mask = params_.mask;
    int count = 0;
    if constexpr (kOwnsKeys) {
      const int64_t column = first_owned_ / mask.block_n;
      // The first query that sees the owner's first key.
      const int64_t seen_from = params_.causal ? max(first_owned_ - shape.causal_offset(), 0) : 0;
      for (int64_t row = seen_from / mask.block_m; row * mask.block_m < shape.query_length; ++row) {
        if (!mask.keeps(batch, head, row, column)) continue;
        const int64_t begin = max(row * mask.block_m, seen_from / kBlock * kBlock);
        const int64_t end = min((row + 1) * mask.block_m, shape.query_length);
        for (int64_t query = begin; query < end; query += kBlock)
          tiles_[count++] = static_cast<int32_t>(query / kBlock);
      }
    } else {
      const int64_t last_row = min(first_owned_ + kBlock, shape.query_length) - 1;
      const int64_t seen = last_row + 1 + shape.causal_offset();
      const int64_t end = params_.causal ? max(min(shape.key_length, seen), 0) : shape.key_length;
      for_each_kept_block(mask.row(batch, head, first_owned_ / mask.block_m), ceil_div(end, mask.block_n),
                          [&](int64_t column) {
                            const int64_t last = min((column + 1) * mask.block_n, end);
                            for (int64_t key = column * mask.block_n; key < last; key += kBlock) {
                              tiles_[count++] = static_cast<int32_t>(key / kBlock);
                            }
                          });
    }
    return count;
  }

  // Which cells of a tile count: rows below num_rows, and with `causal` keys up to limit + query.
  struct Bounds {
    int64_t num_rows;
    int64_t distance;  // first query + offset - first key
    bool causal;

    bool cuts() const { return num_rows < kBlock || (causal && distance < kBlock - 1); }
    Mask counts(int64_t row, int64_t lane) const {
      if (row >= num_rows) return Mask::from_bits(0);
      if (!causal) return Mask::from_bits(~0u);
      if constexpr (!kOwnsKeys) return lanes_from(row - distance, lane);  // key row <= query lane + distance
      const Mask beyond = lanes_from(row + distance + 1, lane);           // key lane > query row + distance
      return Mask::from_bits(~beyond.to_bits() & ((1u << Vec::kLanes) - 1));
    }
  };
  Bounds bounds_of(int64_t tile) const {
    const AttentionShape& shape = params_.shape;
    const int64_t first = tile * kBlock;
    const int64_t first_query = kOwnsKeys ? first : first_owned_, first_key = kOwnsKeys ? first_owned_ : first;
    return {min((kOwnsKeys ? shape.query_length : shape.key_length) - first, kBlock),
            first_query + shape.causal_offset() - first_key, params_.causal};
  }

  void make_tile(const OtherSide<Engine, T>& other, const QueryStatistics& statistics, int64_t tile, int step) {
    const StepList whole = {nullptr, 0, static_cast<int>(head_steps_)};
    Engine::multiply(other.rows1[tile], panel1_, whole, false, scores_, NoStep());
    Engine::multiply(other.rows2[tile], panel2_, whole, false, slopes_, NoStep());
    const int64_t first_query = kOwnsKeys ? tile * kBlock : first_owned_;
    const float* shift = statistics.shift + first_query;
    const float* delta = statistics.delta + first_query;
    const Bounds bounds = bounds_of(tile);
    if (bounds.cuts()) {
      differentiate<true>(bounds, shift, delta, step);
    } else {
      differentiate<false>(bounds, shift, delta, step);
    }
  }

  template <bool kCuts>
  void differentiate(const Bounds& bounds, const float* shift, const float* delta, int step) {
    Operand* score_gradients = score_gradients_ + step * kTileCells;
    Operand* weight_panel = weights_ + step * kTileCells;
    constexpr int kRows = 4;
    for (uint32_t first = 0; first < kBlock; first += kRows) {
      for (int i = 0; i < kVecsPerRow; i += kTogether) {
        Vec weights[kRows * kTogether], gradients[kRows * kTogether];
#pragma GCC unroll 8
        for (int n = 0; n < kRows * kTogether; ++n) {
          const Vec shift_of_query = of_query(shift, first, i, n);
          if constexpr (kRounds) {
            weights[n] = fma(cell(scores_, first, i, n), Vec(factor_), shift_of_query * Vec(kLog2E));
          } else {
            weights[n] = fma(cell(scores_, first, i, n), Vec(factor_), shift_of_query) * Vec(kLog2E);
          }
        }
        exp2<kRounds>(weights);
#pragma GCC unroll 8
        for (int n = 0; n < kRows * kTogether; ++n) {
          gradients[n] = weights[n] * (cell(slopes_, first, i, n) - of_query(delta, first, i, n));
          if constexpr (kCuts) {
            const Mask counts = bounds.counts(first + n / kTogether, (i + n % kTogether) * Vec::kLanes);
            weights[n] = zero_unless(counts, weights[n]);
            gradients[n] = zero_unless(counts, gradients[n]);
          }
        }
#pragma GCC unroll 8
        for (int n = 0; n < kRows * kTogether; n += 2 * kTogether) {
          for (int j = 0; j < kTogether; ++j) {
            const uint32_t row = first + n / kTogether, column = (i + j) * Vec::kLanes;
            Engine::store_pair(gradients[n + j], gradients[n + kTogether + j], score_gradients, row, column);
            if constexpr (kOwnsKeys) {
              Engine::store_pair(weights[n + j], weights[n + kTogether + j], weight_panel, row, column);
            }
          }
        }
      }
    }
  }
  static Vec cell(const float* tile, uint32_t first, int i, int n) {
    return Vec::load(tile + (first + n / kTogether) * kBlock + (i + n % kTogether) * Vec::kLanes);
  }
  static Vec of_query(const float* values, uint32_t first, int i, int n) {
    if constexpr (kOwnsKeys) return Vec(values[first + n / kTogether]);
    return Vec::load(values + (i + n % kTogether) * Vec::kLanes);
  }

  void write_sums(float* sums, T* gradient, float scale) {
    const AttentionShape& shape = params_.shape;
    const int64_t length = kOwnsKeys ? shape.key_length : shape.query_length;
    const int64_t num_rows = min(length - first_owned_, kBlock);
    T* to = gradient + first_owned_ * shape.head_dim;
    for (int64_t chunk = 0; chunk < head_steps_; ++chunk) {
      float* tile = sums + chunk * kTileCells;
      for (int64_t n = 0; n < kTileCells; n += Vec::kLanes) {
        (has_sums_ ? Vec::load(tile + n) * Vec(scale) : Vec(0.0f)).store(tile + n);
      }
      store_transposed_tile(tile, to + chunk * kBlock, shape.head_dim, num_rows,
                            min(shape.head_dim - chunk * kBlock, kBlock));
    }
  }

  const BlockSparseAttentionBackwardParams& params_;
  int64_t head_steps_;
  float factor_;
  int64_t first_owned_ = 0;
  bool has_sums_ = false;
  Operand *panel1_, *panel2_;            // [D steps] X1, X2
  float *sums1_, *sums2_;                // [D/32][32][32]
  float *scores_, *slopes_;              // [32][32]
  Operand *score_gradients_, *weights_;  // [unit tiles] panels
  int32_t* tiles_;                       // kept tiles of the other side
};

}  // namespace tokcore::cpu::TOKCORE_ISA
