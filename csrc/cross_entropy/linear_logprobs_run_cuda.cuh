// The order of the forward's launches on CUDA, what it shares with the backward's, and where each finds its workspace.
// `Kernels` are those of one architecture: KernelsSm80 below, or another type with the same members.
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

}  // namespace tokcore::cross_entropy
