// The order of launches of linear_logprobs on CUDA, and where each finds its workspace. `Kernels` are those of one
// architecture: KernelsSm80 below, or another type with the same members.
#pragma once

#include <algorithm>

#include "cross_entropy/active_positions_cuda.cuh"
#include "cross_entropy/linear_logprobs_finalize.cuh"
#include "cross_entropy/linear_logprobs_gradient_kernels.cuh"
#include "cross_entropy/linear_logprobs_plan_cuda.h"
#include "cross_entropy/linear_logprobs_survivors.cuh"
#include "cross_entropy/linear_logprobs_sweeps_cuda.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/workspace.h"

namespace tokcore::cross_entropy {

using cuda::launch_over;

// Whether rows of c can be read 16 bytes at a time.
template <class T>
bool has_aligned_rows(const LinearLogitsParams& params) {
  const auto is_multiple = [](int64_t elements) { return elements * static_cast<int64_t>(sizeof(T)) % 16 == 0; };
  return reinterpret_cast<uintptr_t>(params.c) % 16 == 0 && is_multiple(params.stride_c_row) &&
         is_multiple(params.hidden_size);
}

// The kernels that run from compute capability 8.0 on, and what callers must know of their shapes.
template <class T>
struct KernelsSm80 {
  static constexpr int64_t kSlotsOfMultiprocessor = TileSm80<T>::kBlocksPerMultiprocessor;
  static constexpr int64_t kBlockRows = TileSm80<T>::kRows;     // active positions that a block takes at a time
  static constexpr int64_t kPartRows = TileSm80<T>::kWarpRows;  // active positions of a warp's part of a tile
  static constexpr int64_t kPartsOfTile = kGradientTile / TileSm80<T>::kWarpColumns;  // side by side

  static void sweep_forward(const ForwardSweep<T>& sweep, bool aligned, cuda::Stream stream) {
    aligned ? launch_forward_sweep_sm80<T, true>(sweep, stream) : launch_forward_sweep_sm80<T, false>(sweep, stream);
  }
  static void differentiate(const DifferentiateSweep<T>& sweep, bool aligned, cuda::Stream stream) {
    aligned ? launch_differentiate_sm80<T, true>(sweep, stream) : launch_differentiate_sm80<T, false>(sweep, stream);
  }
  static void multiply_classifier(const ClassifierProduct<T>& product, cuda::Stream stream) {
    launch_classifier_product_sm80<T>(product, stream);
  }
  static void multiply_hidden(const HiddenProduct<T>& product, bool aligned, cuda::Stream stream) {
    aligned ? launch_hidden_product_sm80<T, true>(product, stream)
            : launch_hidden_product_sm80<T, false>(product, stream);
  }
};

// Those of Hopper.
template <class T>
struct KernelsSm90 {
  static constexpr int64_t kSlotsOfMultiprocessor = 1;
  static constexpr int64_t kBlockRows = 256;
  static constexpr int64_t kPartRows = 32;
  static constexpr int64_t kPartColumns = 128;
  static constexpr int64_t kPartsOfTile = 2;  // the forward's: of two tiles, one for each block of a cluster

  static void sweep_forward(const ForwardSweep<T>& sweep, bool, cuda::Stream stream) {
    launch_forward_sweep_sm90<T>(sweep, stream);
  }
  static void differentiate(const DifferentiateSweep<T>& sweep, bool, cuda::Stream stream) {
    launch_differentiate_sm90<T>(sweep, stream);
  }
  static void multiply_classifier(const ClassifierProduct<T>& product, cuda::Stream stream) {
    launch_classifier_product_sm90<T>(product, stream);
  }
  static void multiply_hidden(const HiddenProduct<T>& product, bool, cuda::Stream stream) {
    launch_hidden_product_sm90<T>(product, stream);
  }
};

// Active positions, with their rows of e and their indices packed.
template <class T>
class PackedPositions {
 public:
  PackedPositions(const LinearLogitsParams& params, cuda::WorkspacePlan& plan)
      : params_(params), columns_(packed_columns(params.hidden_size)) {
    active_.padded = round_up(params.num_positions, kRowTile);
    active_.num_indices = params.num_indices;
    count_ = plan.take<int32_t>(1);
    positions_ = plan.take<int32_t>(params.num_positions);
    active_of_ = plan.take<int32_t>(params.num_positions);
    indices_ = plan.take<int32_t>(active_.padded * params.num_indices);
    rows_ = plan.take<T>(active_.padded * columns_);
    active_.count = count_;
    active_.positions = positions_;
    active_.indices = indices_;
  }

  // gathered: gets NaN where an index is out of range; or null.
  void find(const ActiveRule& rule, float* gathered, cuda::Stream stream) const {
    const CompactPositions compact = {.indices = params_.indices,
                                      .num_positions = params_.num_positions,
                                      .num_indices = params_.num_indices,
                                      .shift = params_.shift,
                                      .sequence = rule.sequence == 0 ? params_.num_positions : rule.sequence,
                                      .ignores = rule.ignore_index.has_value(),
                                      .ignore_index = rule.ignore_index.value_or(0),
                                      .count = count_,
                                      .positions = positions_,
                                      .active_of = active_of_};
    cuda::launch<compact_positions_kernel<>>({.grid = {1},
                                              .threads = kCompactThreads,
                                              .shared_bytes = kCompactThreads / 32 * sizeof(int),
                                              .stream = stream,
                                              .name = "compact_positions"},
                                             compact);
    const PackIndices pack_indices = {.active = active_,
                                      .indices = params_.indices,
                                      .vocab_size = params_.vocab_size,
                                      .packed = indices_,
                                      .gathered = gathered};
    cuda::launch<pack_indices_kernel<>>(
        launch_over(active_.padded * active_.num_indices, kThreadsPerBlock, kThreadsPerBlock, stream, "pack_indices"),
        pack_indices);
    const PackRows<T> pack_rows = {.active = active_,
                                   .e = static_cast<const T*>(params_.e),
                                   .stride_e_row = params_.stride_e_row,
                                   .hidden_size = params_.hidden_size,
                                   .shift = params_.shift,
                                   .packed = rows_,
                                   .columns = columns_};
    cuda::launch<pack_rows_kernel<T>>(launch_over(active_.padded, 1, kPackThreads, stream, "pack_rows"), pack_rows);
  }

  const ActivePositions& active() const { return active_; }
  const T* rows() const { return rows_; }
  int64_t columns() const { return columns_; }
  const int32_t* active_of() const { return active_of_; }

 private:
  const LinearLogitsParams& params_;
  int64_t columns_;
  ActivePositions active_ = {};
  int32_t* count_;
  int32_t* positions_;
  int32_t* active_of_;
  int32_t* indices_;
  T* rows_;
};

// The sweep over the vocabulary and the merging of what it leaves, for at most num_rows active positions at a time.
template <class T, class Kernels>
class ForwardSteps {
 public:
  ForwardSteps(const LinearLogprobsForwardParams& params, const PackedPositions<T>& packed, int64_t num_rows,
               const CudaMachine& machine, cuda::WorkspacePlan& plan)
      : params_(params) {
    const int64_t slots = machine.multiprocessors * Kernels::kSlotsOfMultiprocessor;
    const int64_t padded_rows = round_up(num_rows, kRowTile);
    const int64_t vocab_block = vocab_block_of(params.vocab_size);
    const int64_t num_blocks = ceil_div(params.vocab_size, vocab_block);
    num_parts_ = num_blocks * Kernels::kPartsOfTile;
    sweep_.e = packed.rows();
    sweep_.c = static_cast<const T*>(params.c);
    sweep_.e_columns = packed.columns();
    sweep_.hidden_size = params.hidden_size;
    sweep_.stride_c_row = params.stride_c_row;
    sweep_.vocab_block = vocab_block;
    sweep_.num_splits = cuda::best_split(ceil_div(padded_rows, Kernels::kBlockRows), num_blocks, slots);
    sweep_.row_tile_group = row_tile_group<T>(Kernels::kBlockRows, packed.columns(), machine);
    SweepStatistics& statistics = sweep_.statistics;
    statistics.transform = LogitTransform(params);
    statistics.active = packed.active();
    statistics.class_weight = params.class_weight;
    statistics.vocab_size = params.vocab_size;
    statistics.num_rows = num_rows;
    statistics.padded_rows = padded_rows;
    statistics.gathered = params.gathered;
    statistics.topk = params.topk;
    statistics.stored_logits = params.stored_logits;
    statistics.stride_stored = round_up(params.vocab_size, kFilterTile);
    num_lists_ = sweep_.num_splits * Kernels::kPartsOfTile;
    statistics.maximum = plan.take<float>(num_parts_ * padded_rows);
    statistics.sum = plan.take<float>(num_parts_ * padded_rows);
    if (params.wants_entropy) statistics.weighted = plan.take<float>(num_parts_ * padded_rows);
    if (params.wants_logit_sum) statistics.logit_sum = plan.take<float>(num_parts_ * padded_rows);
    if (params.kept != nullptr) {
      statistics.tile_maxima = plan.take<uint16_t>(ceil_div(params.vocab_size, kFilterTile) * padded_rows);
    }
    if (params.topk > 0) statistics.top_keys = plan.take<RankKey>(num_lists_ * padded_rows * params.topk);
  }

  // The active positions from `first_active` on.
  void run(int64_t first_active, cuda::Stream stream) const {
    ForwardSweep<T> sweep = sweep_;
    sweep.statistics.first_active = first_active;
    Kernels::sweep_forward(sweep, has_aligned_rows<T>(params_), stream);
    const MergeStatistics merge = {.sweep = sweep.statistics,
                                   .num_parts = num_parts_,
                                   .lse = params_.lse,
                                   .entropy = params_.wants_entropy ? params_.entropy : nullptr,
                                   .logit_sum = params_.wants_logit_sum ? params_.logit_sum : nullptr};
    const int64_t num_rows = sweep.statistics.num_rows;
    cuda::LaunchConfig merge_config =
        launch_over(num_rows, kMergeRows, kMergeRows * kMergeGroups, stream, "merge_statistics");
    merge_config.shared_bytes = kMergeRows * kMergeGroups * sizeof(MergedParts);
    cuda::launch<merge_statistics_kernel<>>(merge_config, merge);
    if (params_.topk > 0) {
      const MergeLists lists = {.sweep = sweep.statistics,
                                .num_lists = num_lists_,
                                .values = params_.topk_values,
                                .indices = params_.topk_indices};
      cuda::launch<merge_lists_kernel<>>(
          launch_over(num_rows, kMergeThreads / 32, kMergeThreads, stream, "merge_lists"), lists);
    }
    if (params_.kept != nullptr) keep(sweep.statistics, stream);
  }

 private:
  void keep(const SweepStatistics& statistics, cuda::Stream stream) const {
    const int64_t num_tiles = ceil_div(params_.vocab_size, kFilterTile);
    const KeepTiles tiles = {.sweep = statistics,
                             .lse = params_.lse,
                             .filter_log_eps = params_.filter_log_eps,
                             .kept = params_.kept,
                             .words = params_.kept_words};
    cuda::launch<keep_tiles_kernel<>>(
        launch_over(num_tiles * params_.kept_words, kMergeThreads / 32, kMergeThreads, stream, "keep_tiles"), tiles);
    const KeepIndices indices = {.active = statistics.active,
                                 .ranked = params_.topk > 0 ? params_.topk_indices : nullptr,
                                 .num_ranked = params_.topk,
                                 .first_tile = 0,
                                 .num_tiles = num_tiles,
                                 .kept = params_.kept,
                                 .words = params_.kept_words};
    cuda::launch<keep_indices_kernel<>>(
        launch_over(params_.kept_words, kMergeThreads / 32, kMergeThreads, stream, "keep_indices"), indices);
  }

  const LinearLogprobsForwardParams& params_;
  ForwardSweep<T> sweep_ = {};
  int64_t num_parts_;
  int64_t num_lists_;
};

template <class T, class Kernels>
class LogprobsForward {
 public:
  LogprobsForward(const LinearLogprobsForwardParams& params, const CudaMachine& machine, void* workspace)
      : plan_(workspace),
        params_(params),
        packed_(params, plan_),
        steps_(params, packed_, params.num_positions, machine, plan_) {}
  size_t workspace() const { return plan_.used(); }

  void run(const ActiveRule& rule, cuda::Stream stream) const {
    packed_.find(rule, params_.gathered, stream);
    steps_.run(0, stream);
  }

 private:
  cuda::WorkspacePlan plan_;
  const LinearLogprobsForwardParams& params_;
  PackedPositions<T> packed_;
  ForwardSteps<T, Kernels> steps_;
};

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
