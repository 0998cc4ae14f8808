// From what blocks of keys are to single queries to the statistics of blocks.
#pragma once

#include "attention/attention_block_scores_task_cuda.cuh"
#include "attention/attention_key_tiles.cuh"
#include "tokcore/cuda/reduce.cuh"

namespace tokcore::attention {

// Of all keys that a query sees. Its weight is 0 where nothing counts and NaN where a score is NaN or +inf.
struct RowTotal {
  float highest;  // greatest score
  float norm;     // 1 / sum of 2^(factor (score - highest)); its log2 for kIncoherence

  static TOKCORE_DEVICE RowTotal of(float highest, float sum, BlockStatistic statistic) {
    const bool is_valid = sum < __uint_as_float(0x7f800000u);
    const float norm = sum == 0.0f ? 0.0f : is_valid ? 1.0f / sum : __uint_as_float(0x7fc00000u);
    if (statistic != BlockStatistic::kIncoherence) return {highest, norm};
    return {highest, norm == 0.0f ? -cuda::kFarthest : log2f(norm)};
  }
  // The score that a weight above the threshold exceeds.
  TOKCORE_DEVICE float limit(float threshold, float factor) const {
    if (norm == 0.0f) return __uint_as_float(0x7f800000u);
    return highest + (log2f(threshold) - log2f(norm)) / factor;
  }
};

// The greater one, or NaN if one of them is.
TOKCORE_DEVICE float greater_or_nan(float a, float b) { return a > b || a != a ? a : b; }

// Combines the values of eight neighbouring lanes; each gets the result.
template <class Combine>
TOKCORE_DEVICE float over_eight_lanes(float value, Combine&& combine) {
#pragma unroll
  for (int distance = 1; distance < 8; distance *= 2) {
    value = combine(value, __shfl_xor_sync(cuda::kAllLanes, value, distance));
  }
  return value;
}

// A statistic while it is made. Of kIncoherence, value is the sum of weights relative to 2^greatest.
struct BlockResult {
  float value;
  float greatest;  // log2 of a weight
  int counted;     // elements
};

// Makes the statistics of one tile of queries: eight lanes make a column of blocks from 64 queries at a time, and join
// two such halves where a block has 128.
class BlockReduction {
 public:
  static constexpr int kLanes = 8;
  static constexpr int kRowsOfLane = kHalfRows / kLanes;

  // Of the queries from first_row on the partials of the first `end` keys were written.
  TOKCORE_DEVICE BlockReduction(const BlockScoresTask& task, const RowTotal* totals, const BlockPartial* partials,
                                int first_row, int end)
      : task_(task), totals_(totals), partials_(partials), first_row_(first_row), end_(end) {}

  // Writes the row of blocks `scores` and, where blocks have 64 queries, the next if there is one.
  template <int kThreads>
  TOKCORE_DEVICE void run(float* scores, int num_columns) const {
    const AttentionBlockScoresParams& params = task_.params;
    const int shift_n = log2_of_block(params.block_n), lane = static_cast<int>(threadIdx.x) % kLanes;
    const int num_written = (end_ + (1 << shift_n) - 1) >> shift_n;
    const bool joins = params.block_m == kScoredQueries;
    const bool has_second = first_row_ + kHalfRows < params.shape.query_length;
    for (int first = 0; first < num_columns; first += kThreads / kLanes) {
      const int column = first + static_cast<int>(threadIdx.x) / kLanes;
      BlockResult low = half(0, column, column < num_written, lane);
      const BlockResult high = half(1, column, column < num_written, lane);
      if (joins) low = join(low, high);
      if (lane != 0 || column >= num_columns) continue;
      scores[column] = finished(low);
      if (!joins && has_second) scores[num_columns + column] = finished(high);
    }
  }

 private:
  // Every lane of a warp has to come here.
  TOKCORE_DEVICE BlockResult half(int index, int column, bool is_written, int lane) const {
    const float factor = task_.scale.factor;
    const int first = index * kHalfRows + lane;
    const BlockPartial* from = partials_ + int64_t{column} * kScoredQueries + first;
    BlockPartial parts[kRowsOfLane];
#pragma unroll
    for (int i = 0; i < kRowsOfLane; ++i) {
      parts[i] = is_written ? from[i * kLanes] : BlockPartial{-task_.scale.limit, 0.0f};
    }
    // Turns .maximum into the greatest weight, or its logarithm.
    const auto relate = [&](auto&& make) {
#pragma unroll
      for (int i = 0; i < kRowsOfLane; ++i) {
        const RowTotal total = totals_[first + i * kLanes];
        parts[i].maximum = make((parts[i].maximum - total.highest) * factor, total.norm);
      }
    };
    const auto weight = [](float power, float norm) { return cuda::exp2_approx(power) * norm; };
    const auto add = [](float a, float b) { return a + b; };
    BlockResult result = {0.0f, 0.0f, 0};
    switch (task_.params.statistic) {
      case BlockStatistic::kSum:
        relate(weight);
#pragma unroll
        for (int i = 0; i < kRowsOfLane; ++i) result.value += parts[i].sum * parts[i].maximum;
        result.value = over_eight_lanes(result.value, add);
        break;
      case BlockStatistic::kMax:
        relate(weight);
#pragma unroll
        for (int i = 0; i < kRowsOfLane; ++i) result.value = greater_or_nan(parts[i].maximum, result.value);
        result.value = over_eight_lanes(result.value, [](float a, float b) { return greater_or_nan(a, b); });
        break;
      case BlockStatistic::kCountAbove:
#pragma unroll
        for (int i = 0; i < kRowsOfLane; ++i) result.value += parts[i].sum;
        result.value = over_eight_lanes(result.value, add);
        break;
      case BlockStatistic::kIncoherence:
        relate(add);
        result.greatest = parts[0].maximum;
#pragma unroll
        for (int i = 1; i < kRowsOfLane; ++i) result.greatest = fmaxf(result.greatest, parts[i].maximum);
        result.greatest = over_eight_lanes(result.greatest, [](float a, float b) { return fmaxf(a, b); });
#pragma unroll
        for (int i = 0; i < kRowsOfLane; ++i) {
          result.value += parts[i].sum * cuda::exp2_approx(parts[i].maximum - result.greatest);
        }
        result.value = over_eight_lanes(result.value, add);
        result.counted = counted(index, column);
        break;
    }
    return result;
  }

  TOKCORE_DEVICE BlockResult join(const BlockResult& low, const BlockResult& high) const {
    switch (task_.params.statistic) {
      case BlockStatistic::kMax:
        return {greater_or_nan(high.value, low.value), 0.0f, 0};
      case BlockStatistic::kIncoherence: {
        const float greatest = fmaxf(low.greatest, high.greatest);
        return {low.value * cuda::exp2_approx(low.greatest - greatest) +
                    high.value * cuda::exp2_approx(high.greatest - greatest),
                greatest, low.counted + high.counted};
      }
      default:
        return {low.value + high.value, 0.0f, 0};
    }
  }

  TOKCORE_DEVICE float finished(const BlockResult& result) const {
    if (task_.params.statistic != BlockStatistic::kIncoherence) return result.value;
    if (result.counted == 0) return 0.0f;
    // The greatest weight adds 1: without it all scores were -inf.
    return result.value > 0.0f ? static_cast<float>(result.counted) / result.value : __uint_as_float(0x7fc00000u);
  }

  // Elements of 64 queries and a block of keys that count.
  TOKCORE_DEVICE int counted(int index, int column) const {
    const AttentionBlockScoresParams& params = task_.params;
    const int query_length = static_cast<int>(params.shape.query_length);
    const int key_length = static_cast<int>(params.shape.key_length);
    const int shift_n = log2_of_block(params.block_n), first_key = column << shift_n;
    const int width = max(min(key_length - first_key, 1 << shift_n), 0);
    const int first = first_row_ + index * kHalfRows, rows = max(min(query_length - first, kHalfRows), 0);
    if (!params.causal) return rows * width;
    // Of the first query `seen` keys of the block count, of each further one as many and one more, within 0 … width.
    const int seen = min(first + 1 + key_length - query_length - first_key, width);
    return sum_within(seen + rows, width) - sum_within(seen, width);
  }
  // The sum of min(max(i, 0), width) over all i < end, from 0 on.
  static TOKCORE_DEVICE int sum_within(int end, int width) {
    const int rising = min(max(end, 0), width + 1);
    return rising * (rising - 1) / 2 + max(end - rising, 0) * width;
  }

  const BlockScoresTask& task_;
  const RowTotal* totals_;        // [kScoredQueries]
  const BlockPartial* partials_;  // [blocks of keys, kScoredQueries]
  int first_row_;
  int end_;
};

}  // namespace tokcore::attention
