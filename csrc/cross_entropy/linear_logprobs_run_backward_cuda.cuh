// The order of the backward's launches on CUDA.
#pragma once

#include <optional>

#include "cross_entropy/linear_logprobs_run_cuda.cuh"

namespace tokcore::cross_entropy {

// The sums of the uniform term, for when the filter keeps dz from holding it.
template <class T>
class UniformTerm {
 public:
  UniformTerm(const LinearLogprobsBackwardParams& params, cuda::WorkspacePlan& plan) : params_(params) {
    const int64_t columns = max(params.hidden_size, 1);
    parts_ = plan.take<double>(kUniformParts * columns);
    over_vocab_ = plan.take<float>(columns);
    over_positions_ = plan.take<float>(columns);
    bias_ = plan.take<double>(1);
  }

  void run(const PackedPositions<T>& packed, const GradientRow* rows, cuda::Stream stream) const {
    UniformSums<T> sums = {.active = packed.active(),
                           .rows = static_cast<const T*>(params_.c),
                           .stride_row = params_.stride_c_row,
                           .num_rows = params_.vocab_size,
                           .num_columns = params_.hidden_size,
                           .weights = params_.class_weight,
                           .slope = 1.0f / params_.temperature,
                           .parts = parts_};
    if (params_.grad_e != nullptr) sum(sums, over_vocab_, stream);
    sums.rows = packed.rows();
    sums.stride_row = packed.columns();
    sums.num_rows = -1;
    sums.weights = nullptr;
    sums.gradient_rows = rows;
    if (params_.grad_c != nullptr) sum(sums, over_positions_, stream);
    sums.num_columns = 0;
    if (params_.grad_bias != nullptr) sum(sums, bias_, stream);
  }
  const float* over_vocab() const { return over_vocab_; }          // [C] sum_v w_v c_v
  const float* over_positions() const { return over_positions_; }  // [C] sum_t u_t e_t
  const double* bias() const { return bias_; }                     // [1] sum_t u_t

 private:
  template <class Out>
  void sum(const UniformSums<T>& sums, Out* total, cuda::Stream stream) const {
    const int64_t columns = max(sums.num_columns, 1);
    cuda::LaunchConfig config = launch_over(columns, kGradientThreads, kGradientThreads, stream, "uniform_parts");
    config.grid.y = kUniformParts;
    cuda::launch<uniform_parts_kernel<T>>(config, sums);
    cuda::launch<uniform_total_kernel<Out>>(
        launch_over(columns, kGradientThreads, kGradientThreads, stream, "uniform_total"),
        UniformTotal<Out>{.parts = sums.parts, .num_columns = columns, .total = total});
  }

  const LinearLogprobsBackwardParams& params_;
  double* parts_;
  float* over_vocab_;
  float* over_positions_;
  double* bias_;
};

// Arrays of the filtered backward, for one chunk at a time.
class ChunkSurvivors {
 public:
  ChunkSurvivors(const LinearLogprobsBackwardParams& params, int64_t padded, int64_t tiles, int64_t parts_of_tile,
                 cuda::WorkspacePlan& plan)
      : words_(params.kept_words), parts_of_tile_(parts_of_tile) {
    kept_ = plan.take<uint32_t>(tiles * kFilterTilesPerGradientTile * words_);
    rows_ = plan.take<int32_t>(tiles * padded);
    counts_ = plan.take<int32_t>(tiles);
    bits_ = plan.take<uint32_t>(tiles * words_);
    before_ = plan.take<int32_t>(tiles * words_);
    nonzeros_ = plan.take<int32_t>(tiles * parts_of_tile);
    is_dense_ = plan.take<int32_t>(tiles);
    dense_tiles_ = plan.take<int32_t>(tiles);
    num_dense_ = plan.take<int32_t>(1);
  }

  // From the bits that the forward left, and from the indices, whose tiles are always kept.
  void list(const LinearLogprobsBackwardParams& params, const ActivePositions& active, int64_t first_vocab_row,
            int64_t num_tiles, cuda::Stream stream) const {
    const int64_t first = first_vocab_row / kFilterTile;
    const int64_t filter_tiles =
        min(ceil_div(params.vocab_size, kFilterTile) - first, num_tiles * kFilterTilesPerGradientTile);
    const CopyWords copy = {.from = params.kept + first * words_, .to = kept_, .count = filter_tiles * words_};
    cuda::launch<copy_words_kernel<>>(launch_over(copy.count, kSurvivorThreads, kSurvivorThreads, stream, "copy_words"),
                                      copy);
    const KeepIndices keep = {.active = active,
                              .ranked = nullptr,
                              .num_ranked = 0,
                              .first_tile = first,
                              .num_tiles = filter_tiles,
                              .kept = kept_,
                              .words = words_};
    cuda::launch<keep_indices_kernel<>>(launch_over(words_, kMergeThreads / 32, kMergeThreads, stream, "keep_indices"),
                                        keep);
    const ListSurvivors survivors = {.kept = kept_,
                                     .filter_tiles = filter_tiles,
                                     .words = words_,
                                     .padded = active.padded,
                                     .rows = rows_,
                                     .counts = counts_,
                                     .bits = bits_,
                                     .before = before_};
    cuda::launch<list_survivors_kernel<>>({.grid = {static_cast<unsigned>(num_tiles)},
                                           .threads = kSurvivorThreads,
                                           .shared_bytes = BlockRank::kSharedBytes,
                                           .stream = stream,
                                           .name = "list_survivors"},
                                          survivors);
  }

  // After dz is there: which tiles to multiply as a whole.
  void choose_dense(const ActivePositions& active, int64_t num_tiles, int64_t rows_of_part, int64_t parts_of_rows,
                    cuda::Stream stream) const {
    const ChooseDense choose = {.active = active,
                                .survivors = survivors(),
                                .nonzeros = nonzeros_,
                                .nonzeros_stride = parts_of_tile_,
                                .rows_of_part = rows_of_part,
                                .parts_of_rows = parts_of_rows,
                                .num_tiles = num_tiles,
                                .is_dense = is_dense_,
                                .tiles = dense_tiles_,
                                .num_listed = num_dense_};
    cuda::launch<choose_dense_kernel<>>({.grid = {1},
                                         .threads = kSurvivorThreads,
                                         .shared_bytes = BlockRank::kSharedBytes,
                                         .stream = stream,
                                         .name = "choose_dense"},
                                        choose);
  }

  Survivors survivors() const {
    return {.rows = rows_, .counts = counts_, .bits = bits_, .before = before_, .words = words_};
  }
  int32_t* nonzeros() const { return nonzeros_; }
  const int32_t* is_dense() const { return is_dense_; }
  const int32_t* dense_tiles() const { return dense_tiles_; }
  const int32_t* num_dense() const { return num_dense_; }

 private:
  int64_t words_;
  int64_t parts_of_tile_;
  uint32_t* kept_;
  int32_t* rows_;
  int32_t* counts_;
  uint32_t* bits_;
  int32_t* before_;
  int32_t* nonzeros_;
  int32_t* is_dense_;
  int32_t* dense_tiles_;
  int32_t* num_dense_;
};

template <class T, class Kernels>
class LogprobsBackward {
 public:
  // chunk_tiles: vocabulary tiles whose dz is in memory at a time.
  LogprobsBackward(const LinearLogprobsBackwardParams& params, const CudaMachine& machine, int64_t chunk_tiles,
                   void* workspace)
      : plan_(workspace),
        params_(params),
        machine_(machine),
        chunk_tiles_(chunk_tiles),
        filters_(params.kept != nullptr),
        uniform_apart_(filters_ && params.grad_sum != nullptr),
        aligned_(has_aligned_rows<T>(params)),
        packed_(params, plan_) {
    const int64_t padded = packed_.active().padded;
    row_parts_ = padded / Kernels::kPartRows;
    dz_ = plan_.take<T>(chunk_tiles * padded * kGradientTile);
    rows_ = plan_.take<GradientRow>(padded);
    if (params.grad_e != nullptr) sums_e_ = plan_.take<float>(padded * packed_.columns());
    if (params.grad_bias != nullptr) bias_sums_ = plan_.take<float>(row_parts_ * chunk_tiles * kGradientTile);
    if (filters_) survivors_.emplace(params, padded, chunk_tiles, row_parts_ * Kernels::kPartsOfTile, plan_);
    if (uniform_apart_) uniform_.emplace(params, plan_);
  }
  size_t workspace() const { return plan_.used(); }

  void run(const ActiveRule& rule, cuda::Stream stream) const {
    packed_.find(rule, nullptr, stream);
    const PackGradientRows pack = {.active = packed_.active(),
                                   .lse = params_.lse,
                                   .grad_prob = params_.grad_prob,
                                   .grad_plogp = params_.grad_plogp,
                                   .grad_sum = params_.grad_sum,
                                   .rows = rows_};
    cuda::launch<pack_gradient_rows_kernel<>>(
        launch_over(packed_.active().padded, kGradientThreads, kGradientThreads, stream, "pack_gradient_rows"), pack);
    if (uniform_apart_) uniform_->run(packed_, rows_, stream);
    for (int64_t first_row = 0; first_row < params_.vocab_size; first_row += chunk_tiles_ * kGradientTile) {
      const int64_t num_tiles = min(chunk_tiles_, ceil_div(params_.vocab_size - first_row, kGradientTile));
      run_chunk(first_row, num_tiles, stream);
    }
    if (params_.grad_e != nullptr) store_hidden(stream);
  }

 private:
  Survivors survivors() const { return filters_ ? survivors_->survivors() : Survivors{}; }
  GradientTiles<T> dz(int64_t num_tiles) const {
    return {.data = dz_,
            .tile_stride = packed_.active().padded * kGradientTile,
            .row_stride = kGradientTile,
            .columns = num_tiles * kGradientTile};
  }

  void run_chunk(int64_t first_row, int64_t num_tiles, cuda::Stream stream) const {
    if (filters_) survivors_->list(params_, packed_.active(), first_row, num_tiles, stream);
    differentiate(first_row, num_tiles, stream);
    if (params_.grad_bias != nullptr) store_bias(first_row, num_tiles, stream);
    if (params_.grad_c != nullptr) {
      const ClassifierProduct<T> product = {.active = packed_.active(),
                                            .survivors = survivors(),
                                            .dz = dz(num_tiles),
                                            .e = packed_.rows(),
                                            .e_columns = packed_.columns(),
                                            .hidden_size = params_.hidden_size,
                                            .class_weight = params_.class_weight,
                                            .uniform = uniform_apart_ ? uniform_->over_positions() : nullptr,
                                            .grad_c = static_cast<T*>(params_.grad_c),
                                            .vocab_size = params_.vocab_size,
                                            .first_vocab_row = first_row,
                                            .num_tiles = num_tiles,
                                            .num_rows = params_.num_positions};
      Kernels::multiply_classifier(product, stream);
    }
    if (params_.grad_e != nullptr) multiply_hidden(first_row, num_tiles, stream);
  }

  void differentiate(int64_t first_row, int64_t num_tiles, cuda::Stream stream) const {
    const DifferentiateSweep<T> sweep = {
        .gradient = {.transform = LogitTransform(params_),
                     .filter_log_eps = filters_ ? params_.filter_log_eps : -__builtin_inff(),
                     .has_plogp = params_.grad_plogp != nullptr,
                     .has_sum = params_.grad_sum != nullptr && !uniform_apart_},
        .active = packed_.active(),
        .survivors = survivors(),
        .dz = dz(num_tiles),
        .e = packed_.rows(),
        .c = static_cast<const T*>(params_.c),
        .e_columns = packed_.columns(),
        .hidden_size = params_.hidden_size,
        .stride_c_row = params_.stride_c_row,
        .rows = rows_,
        .class_weight = params_.class_weight,
        .logits = params_.logits,
        .grad_logits = params_.grad_logits,
        .bias_sums = bias_sums_,
        .nonzeros = filters_ ? survivors_->nonzeros() : nullptr,
        .nonzeros_stride = row_parts_ * Kernels::kPartsOfTile,
        .vocab_size = params_.vocab_size,
        .first_vocab_row = first_row,
        .num_tiles = num_tiles,
        .row_tile_group = row_tile_group<T>(Kernels::kBlockRows, packed_.columns(), machine_)};
    Kernels::differentiate(sweep, aligned_, stream);
  }

  void store_bias(int64_t first_row, int64_t num_tiles, cuda::Stream stream) const {
    const BiasGradient bias = {.active = packed_.active(),
                               .survivors = survivors(),
                               .sums = bias_sums_,
                               .rows_of_part = Kernels::kPartRows,
                               .class_weight = params_.class_weight,
                               .uniform = uniform_apart_ ? uniform_->bias() : nullptr,
                               .grad_bias = params_.grad_bias,
                               .vocab_size = params_.vocab_size,
                               .first_vocab_row = first_row,
                               .num_tiles = num_tiles,
                               .num_rows = params_.num_positions};
    cuda::launch<bias_gradient_kernel<>>(
        launch_over(num_tiles * kGradientTile, kGradientThreads, kGradientThreads, stream, "bias_gradient"), bias);
  }

  void multiply_hidden(int64_t first_row, int64_t num_tiles, cuda::Stream stream) const {
    if (filters_) {
      survivors_->choose_dense(packed_.active(), num_tiles, Kernels::kPartRows, Kernels::kPartsOfTile, stream);
    }
    const HiddenProduct<T> product = {.active = packed_.active(),
                                      .survivors = survivors(),
                                      .dz = dz(num_tiles),
                                      .c = static_cast<const T*>(params_.c),
                                      .hidden_size = params_.hidden_size,
                                      .stride_c_row = params_.stride_c_row,
                                      .tiles = filters_ ? survivors_->dense_tiles() : nullptr,
                                      .num_listed = filters_ ? survivors_->num_dense() : nullptr,
                                      .sums = sums_e_,
                                      .sums_columns = packed_.columns(),
                                      .vocab_size = params_.vocab_size,
                                      .first_vocab_row = first_row,
                                      .num_tiles = num_tiles,
                                      .num_rows = params_.num_positions,
                                      .continues = first_row > 0};
    Kernels::multiply_hidden(product, aligned_, stream);
    if (!filters_) return;
    const SparseHiddenProduct<T> sparse = {.active = packed_.active(),
                                           .survivors = survivors(),
                                           .dz = dz(num_tiles),
                                           .c = static_cast<const T*>(params_.c),
                                           .hidden_size = params_.hidden_size,
                                           .stride_c_row = params_.stride_c_row,
                                           .is_dense = survivors_->is_dense(),
                                           .sums = sums_e_,
                                           .sums_columns = packed_.columns(),
                                           .first_vocab_row = first_row,
                                           .num_tiles = num_tiles};
    const cuda::LaunchConfig config =
        launch_over(params_.num_positions * ceil_div(params_.hidden_size, kSparseColumns), kSurvivorThreads / 32,
                    kSurvivorThreads, stream, "sparse_hidden_product");
    aligned_ ? cuda::launch<sparse_hidden_product_kernel<T, true>>(config, sparse)
             : cuda::launch<sparse_hidden_product_kernel<T, false>>(config, sparse);
  }

  void store_hidden(cuda::Stream stream) const {
    const StoreHidden<T> store = {.active = packed_.active(),
                                  .active_of = packed_.active_of(),
                                  .sums = sums_e_,
                                  .sums_columns = packed_.columns(),
                                  .rows = rows_,
                                  .uniform = uniform_apart_ ? uniform_->over_vocab() : nullptr,
                                  .grad_e = static_cast<T*>(params_.grad_e),
                                  .num_positions = params_.num_positions,
                                  .hidden_size = params_.hidden_size,
                                  .shift = params_.shift};
    cuda::launch<store_hidden_kernel<T>>(
        launch_over(params_.num_positions, 1, kGradientThreads, stream, "store_hidden"), store);
  }

  cuda::WorkspacePlan plan_;
  const LinearLogprobsBackwardParams& params_;
  CudaMachine machine_;
  int64_t chunk_tiles_;
  bool filters_, uniform_apart_, aligned_;
  PackedPositions<T> packed_;
  int64_t row_parts_;
  T* dz_ = nullptr;              // [chunk_tiles, padded T, 128]
  GradientRow* rows_ = nullptr;  // [padded T]
  float* sums_e_ = nullptr;      // [padded T, packed columns]
  float* bias_sums_ = nullptr;   // [row parts, chunk_tiles * 128]
  std::optional<ChunkSurvivors> survivors_;
  std::optional<UniformTerm<T>> uniform_;
};

}  // namespace tokcore::cross_entropy
