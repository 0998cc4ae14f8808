// kv_saliency: logits in tiles of 32 probes by 32 tokens, first for every row's lse, then for the columns' reductions.
// Compiled once per instruction-set level.
#include "tokcore/kv_cache/kv_saliency.h"

#include <cmath>
#include <type_traits>

#include "tokcore/common/philox.h"
#include "tokcore/cpu/block_product.h"
#include "tokcore/cpu/row_softmax.h"
#include "tokcore/cpu/scratch.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

template <class Engine, class T>
class Saliency {
  using Operand = typename Engine::Operand;

 public:
  Saliency(const KvSaliencyParams& params, const Threads& threads)
      : p_(params),
        threads_(threads),
        group_size_(params.num_q_heads / params.num_heads),
        num_rows_(params.num_probes * group_size_),
        row_blocks_(ceil_div(num_rows_, kBlock)),
        column_blocks_(ceil_div(params.num_tokens, kBlock)),
        num_items_(params.num_sequences * params.num_heads),
        stride_(row_operand_stride(params.head_dim)),
        panel_size_(round_up(params.head_dim, kBlock) * kBlock) {}

  void run() {
    Arena counting;
    plan(counting);
    Scratch scratch(counting.used());
    Arena arena(scratch.data());
    plan(arena);
    auto around = [](int, auto&& run) {
      [[maybe_unused]] typename Engine::WorkerState state;
      run();
    };
    for_each_item(
        threads_, num_items_ * row_blocks_, [&](int64_t i, int) { pack_rows(i / row_blocks_, i % row_blocks_); },
        around);
    if (p_.lse == nullptr) {
      const int64_t runs = ceil_div(row_blocks_, kRowBlocksAtOnce);
      for_each_item(
          threads_, num_items_ * runs,
          [&](int64_t i, int worker) { find_lse(i / runs, i % runs * kRowBlocksAtOnce, worker); }, around);
    }
    for_each_item(
        threads_, num_items_ * column_blocks_,
        [&](int64_t i, int worker) { reduce_columns(i / column_blocks_, i % column_blocks_, worker); }, around);
  }

 private:
  static constexpr int64_t kRowBlocksAtOnce = 8;

  void plan(Arena& arena) {
    rows_ = arena.take<Operand>(num_items_ * row_blocks_ * kBlock * stride_);
    lse_ = arena.take<float>(num_items_ * row_blocks_ * kBlock);
    panels_ = arena.take_per_thread<Operand>(threads_.count, panel_size_);
    tiles_ = arena.take_per_thread<float>(threads_.count, kBlock * kBlock);
  }

  // ---- rows: probe r / G, head r % G of the group ------------------------------------------------------------------

  int64_t probe_of(int64_t row) const { return row / group_size_; }
  int64_t head_of(int64_t item, int64_t row) const { return item % p_.num_heads * group_size_ + row % group_size_; }
  int64_t position_of(int64_t item, int64_t row) const {
    return p_.positions[item / p_.num_heads * p_.num_probes + probe_of(row)];
  }
  Operand* block_of(int64_t item, int64_t block) const {
    return rows_ + (item * row_blocks_ + block) * kBlock * stride_;
  }
  float* lse_of(int64_t item) const { return lse_ + item * row_blocks_ * kBlock; }

  void pack_rows(int64_t item, int64_t block) const {
    const int64_t b = item / p_.num_heads;
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t row = block * kBlock + i;
      Operand* to = block_of(item, block) + i * stride_;
      float zeros[kBlock] = {};
      if (row >= num_rows_) {
        for (int64_t d = 0; d < p_.head_dim; d += kBlock) Engine::store_row(zeros, to + d);
        continue;
      }
      const T* from = static_cast<const T*>(p_.q) + b * p_.stride_q_sequence + probe_of(row) * p_.stride_q_probe +
                      head_of(item, row) * p_.stride_q_head;
      float numbers[kBlock];
      for (int64_t d = 0; d < p_.head_dim; d += kBlock) {
        for (int64_t j = 0; j < kBlock; ++j) numbers[j] = d + j < p_.head_dim ? to_float(from[d + j]) : 0.0f;
        Engine::store_row(numbers, to + d);
      }
      if (p_.lse != nullptr) {
        lse_of(item)[row] = p_.lse[(b * p_.num_q_heads + head_of(item, row)) * p_.num_probes + probe_of(row)];
      }
    }
  }

  void pack_panel(int64_t item, int64_t column_block, Operand* panel) const {
    const T* rows[kBlock];
    for (int64_t j = 0; j < kBlock; ++j) {
      const int64_t token = column_block * kBlock + j;
      const T* keys = static_cast<const T*>(p_.k) + item / p_.num_heads * p_.stride_k_sequence +
                      item % p_.num_heads * p_.stride_k_head;
      rows[j] = token < p_.num_tokens ? keys + token * p_.stride_k_token : nullptr;
    }
    Engine::pack_transposed(rows, p_.head_dim, panel);
  }

  // Logits of a tile in place; tokens that a probe does not see get -inf. noise [32] by token.
  void make_logits(int64_t item, int64_t block, int64_t column_block, const float* noise, float* tile) const {
    const int64_t first = column_block * kBlock;
    const float inverse = 1.0f / p_.temperature;
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t row = block * kBlock + i;
      const int64_t last = row < num_rows_ ? min(position_of(item, row), p_.num_tokens - 1) : -1;
      float* logits = tile + i * kBlock;
      for (int64_t j = 0; j < kBlock; ++j) logits[j] = (logits[j] * p_.scale + noise[j]) * inverse;
      for (int64_t j = max(last - first + 1, 0); j < kBlock; ++j) logits[j] = -INFINITY;
    }
  }
  void make_noise(int64_t item, int64_t column_block, float* noise) const {
    for (int64_t j = 0; j < kBlock; ++j) {
      noise[j] = 0.0f;
      if (!p_.adds_noise) continue;
      const PhiloxWords words =
          philox(p_.seed, static_cast<uint64_t>(column_block * kBlock + j), static_cast<uint64_t>(item));
      noise[j] = static_cast<float>(-std::log(-std::log(uniform_of(words.word[0]))));
    }
  }
  void multiply(int64_t item, int64_t block, const Operand* panel, float* tile) const {
    const RowOperand<Operand> rows = {block_of(item, block), stride_};
    float* const outs[1] = {tile};
    const StepList steps = {nullptr, 0, static_cast<int>(ceil_div(p_.head_dim, kBlock))};
    multiply_blocks<Engine>(&rows, outs, 1, panel, steps, false, false, NoStep());
  }

  // The last position that any probe of a run of blocks sees.
  int64_t last_position(int64_t item, int64_t first_block, int64_t end_block) const {
    int64_t last = -1;
    for (int64_t row = first_block * kBlock; row < min(end_block * kBlock, num_rows_); ++row) {
      last = max(last, position_of(item, row));
    }
    return min(last, p_.num_tokens - 1);
  }

  void find_lse(int64_t item, int64_t first_block, int worker) const {
    const int64_t end_block = min(first_block + kRowBlocksAtOnce, row_blocks_);
    Operand* panel = panels_[worker];
    float* tile = tiles_[worker];
    RowSoftmax states[kRowBlocksAtOnce * kBlock];
    const int64_t columns = ceil_div(last_position(item, first_block, end_block) + 1, kBlock);
    for (int64_t column = 0; column < columns; ++column) {
      float noise[kBlock];
      make_noise(item, column, noise);
      pack_panel(item, column, panel);
      for (int64_t block = first_block; block < end_block; ++block) {
        multiply(item, block, panel, tile);
        make_logits(item, block, column, noise, tile);
        for (int64_t i = 0; i < kBlock; ++i) states[(block - first_block) * kBlock + i].take(tile + i * kBlock, kBlock);
      }
    }
    for (int64_t row = first_block * kBlock; row < end_block * kBlock; ++row) {
      const RowSoftmax& state = states[row - first_block * kBlock];
      lse_of(item)[row] = state.maximum + std::log(state.sum);
    }
  }

  void reduce_columns(int64_t item, int64_t column, int worker) const {
    Operand* panel = panels_[worker];
    float* tile = tiles_[worker];
    float totals[kBlock] = {}, noise[kBlock];
    int64_t counts[kBlock] = {};
    make_noise(item, column, noise);
    pack_panel(item, column, panel);
    const int64_t latest = last_position(item, 0, row_blocks_);
    for (int64_t block = 0; block < row_blocks_; ++block) {
      if (last_position(item, block, block + 1) < column * kBlock) continue;
      multiply(item, block, panel, tile);
      make_logits(item, block, column, noise, tile);
      for (int64_t i = 0; i < min(kBlock, num_rows_ - block * kBlock); ++i) {
        const int64_t row = block * kBlock + i;
        add_row(tile + i * kBlock, lse_of(item)[row], position_of(item, row), latest, column, totals, counts);
      }
    }
    float* scores = p_.scores + item * p_.num_tokens + column * kBlock;
    for (int64_t j = 0; j < min(kBlock, p_.num_tokens - column * kBlock); ++j) {
      const bool divides = p_.reduce == SaliencyReduce::kNormalizedSum && counts[j] > 0;
      scores[j] = divides ? totals[j] / static_cast<float>(counts[j]) : totals[j];
    }
  }

  void add_row(const float* logits, float lse, int64_t position, int64_t latest, int64_t column, float* totals,
               int64_t* counts) const {
    const float weight = p_.reduce == SaliencyReduce::kDecayed && position >= 0
                             ? std::pow(p_.decay, static_cast<float>(latest - min(position, p_.num_tokens - 1)))
                             : 1.0f;
    const int64_t seen = min(kBlock, position - column * kBlock + 1);
    for (int64_t j = 0; j < kBlock; j += Vec::kLanes) {
      const Vec p = exp(Vec::load(logits + j) - Vec(lse)) * Vec(weight);
      const Vec total = Vec::load(totals + j);
      float values[Vec::kLanes];
      const Vec greater = select(is_nan(total), total, max(total, p));  // a NaN stays
      (p_.reduce == SaliencyReduce::kMax ? greater : total + p).store(values);
      for (int64_t lane = 0; lane < Vec::kLanes; ++lane) {
        if (j + lane >= seen) break;
        totals[j + lane] = values[lane];
        ++counts[j + lane];
      }
    }
  }

  const KvSaliencyParams& p_;
  const Threads& threads_;
  int64_t group_size_, num_rows_, row_blocks_, column_blocks_, num_items_, stride_, panel_size_;
  Operand* rows_ = nullptr;  // [items][row blocks][32, stride]
  float* lse_ = nullptr;     // [items][row blocks * 32]
  PiecePerThread<Operand> panels_;
  PiecePerThread<float> tiles_;  // [32, 32]
};

}  // namespace

void kv_saliency(const KvSaliencyParams& params, const Threads& threads) {
  with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    Saliency<typename EngineOf<T>::type, T>(params, threads).run();
  });
}

}  // namespace tokcore::cpu::TOKCORE_ISA
