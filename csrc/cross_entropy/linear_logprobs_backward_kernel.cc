// Backward: workers take vocabulary blocks in ascending order and never meet, except that each adds its block's part of
// grad_e in turn. A gradient element is summed in a fixed order in fp32, whatever the number of workers. Compiled once
// per instruction-set level.
#include "tokcore/cross_entropy/vocab_block_gradient.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

template <class Engine, class T>
class Backward {
 public:
  Backward(const LinearLogprobsBackwardParams& params, const Threads& threads)
      : params_(params), threads_(threads), shared_(params) {}

  int64_t workspace() {
    Arena measure;
    plan(measure);
    return static_cast<int64_t>(measure.used());
  }

  void run() {
    Scratch scratch(static_cast<size_t>(workspace()));
    Arena arena(scratch.data());
    plan(arena);
    shared_.positions.load(params_, shared_.padded_active);
    shared_.buckets.build(params_);
    shared_.turns.reset(shared_.num_turns());
    pack_positions();
    if (shared_.uniform_apart) sum_uniform();
    for_each_item(
        threads_, ceil_div(params_.vocab_size, kGradientBlock),
        [&](int64_t vocab_block, int worker) {
          VocabBlockGradient<Engine, T>(params_, shared_, spaces_[worker], vocab_block).run();
        },
        [](int, auto&& run) {
          [[maybe_unused]] typename Engine::WorkerState state;
          run();
        });
    if (shared_.wants_e) store_grad_e();
  }

 private:
  void plan(Arena& arena) {
    shared_.plan(arena, params_);
    rows_of_e_ = arena.take<const T*>(kSuperblock);
    spaces_ = arena.take<VocabBlockSpace<Engine, T>>(threads_.count);
    VocabBlockSpace<Engine, T> unplaced;
    for (int worker = 0; worker < threads_.count; ++worker) {
      arena.separate_threads();
      VocabBlockSpace<Engine, T>& space = spaces_ != nullptr ? spaces_[worker] : unplaced;
      space.plan(arena, params_, shared_);
    }
  }

  // e in the two forms that products read: by panel for the logits, by column for grad_c.
  void pack_positions() {
    for (int64_t i = 0; i < shared_.num_superblocks; ++i) {
      const Superblock superblock = superblock_at(params_, i);
      for (int64_t j = 0; j < superblock.count; ++j) rows_of_e_[j] = row_of_e<T>(params_, superblock.first + j);
      for_each_item(threads_, superblock.num_panels(), [&](int64_t panel, int) {
        if (shared_.recomputes) {
          Engine::pack_transposed(PanelRows<T>(params_, superblock, panel).rows, params_.hidden_size,
                                  shared_.panel_of_e(superblock, panel));
        }
        for (int64_t column = 0; shared_.wants_c && column < shared_.num_columns; ++column) {
          Engine::pack_columns(rows_of_e_ + panel * kBlock, superblock.lanes(panel), column * kBlock,
                               params_.hidden_size, shared_.column_of_e(superblock, column) + panel * kTileElements);
        }
      });
    }
  }

  // The uniform term of label smoothing reaches every vocabulary row, also where the filter drops the tile. Without a
  // softcap it is a product of two vectors: grad_e_t += u_t sum_v w_v c_v and grad_c_v += w_v sum_t u_t e_t.
  void sum_uniform() {
    for_each_item(threads_, shared_.num_columns, [&](int64_t column, int) {
      double over_v[kBlock] = {}, over_t[kBlock] = {};
      const int64_t width = min(params_.hidden_size - column * kBlock, kBlock);
      const float slope = 1.0f / params_.temperature;
      for (int64_t v = 0; v < params_.vocab_size; ++v) {
        const float weight = params_.class_weight != nullptr ? params_.class_weight[v] : 1.0f;
        const T* row = static_cast<const T*>(params_.c) + v * params_.stride_c_row + column * kBlock;
        for (int64_t j = 0; j < width; ++j) over_v[j] += static_cast<double>(weight * slope * to_float(row[j]));
      }
      for (int64_t i = 0; i < params_.num_active; ++i) {
        const float u = params_.grad_sum[params_.active_positions[i]];
        const T* row = row_of_e<T>(params_, i) + column * kBlock;
        for (int64_t j = 0; j < width; ++j) over_t[j] += static_cast<double>(u * slope * to_float(row[j]));
      }
      for (int64_t j = 0; j < kBlock; ++j) {
        shared_.uniform_c[column * kBlock + j] = static_cast<float>(over_v[j]);
        shared_.uniform_e[column * kBlock + j] = static_cast<float>(over_t[j]);
      }
    });
    for (int64_t i = 0; i < params_.num_active; ++i) {
      shared_.uniform_bias += static_cast<double>(params_.grad_sum[params_.active_positions[i]] / params_.temperature);
    }
  }

  void store_grad_e() {
    for_each_item(threads_, ceil_div(params_.num_active, kBlock), [&](int64_t panel, int) {
      const int64_t end = min((panel + 1) * kBlock, params_.num_active);
      for (int64_t active = panel * kBlock; active < end; ++active) {
        const int64_t position = params_.active_positions[active];
        T* row = static_cast<T*>(params_.grad_e) + (position - params_.shift) * params_.hidden_size;
        for (int64_t column = 0; column < shared_.num_columns; ++column) {
          float* from = shared_.grad_e_tile(active, column);
          if (shared_.uniform_apart) {
            add_scaled(params_.grad_sum[position], shared_.uniform_c + column * kBlock, from);
          }
          store_columns(from, row, column, params_.hidden_size);
        }
      }
    });
  }

  const LinearLogprobsBackwardParams& params_;
  const Threads& threads_;
  BackwardShared<Engine> shared_;
  const T** rows_of_e_ = nullptr;                 // [kSuperblock]
  VocabBlockSpace<Engine, T>* spaces_ = nullptr;  // [workers]
};

template <class Visit>
void with_type(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::kFloat32:
      return visit.template operator()<float>();
    case DType::kFloat16:
      return visit.template operator()<Float16>();
    case DType::kBFloat16:
      return visit.template operator()<BFloat16>();
  }
}

}  // namespace

void linear_logprobs_backward(const LinearLogprobsBackwardParams& params, const Threads& threads) {
  with_type(params.dtype, [&]<class T>() { Backward<typename EngineOf<T>::type, T>(params, threads).run(); });
}

int64_t linear_logprobs_backward_workspace(const LinearLogprobsBackwardParams& params, const Threads& threads) {
  int64_t bytes = 0;
  with_type(params.dtype,
            [&]<class T>() { bytes = Backward<typename EngineOf<T>::type, T>(params, threads).workspace(); });
  return bytes;
}

}  // namespace tokcore::cpu::TOKCORE_ISA
