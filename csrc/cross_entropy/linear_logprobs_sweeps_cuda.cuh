// What the architectures' kernels are given: the arguments of each kind of launch. linear_logprobs_run_cuda.cuh fills
// them.
#pragma once

#include "cross_entropy/linear_logprobs_plan_cuda.h"
#include "cross_entropy/linear_logprobs_statistics.cuh"
#include "tokcore/cuda/stream.h"
#include "tokcore/cuda/tile_order.h"

namespace tokcore::cross_entropy {

// Rows of e are those of active positions, packed: 16-byte aligned, the columns padded with zeros.
template <class T>
struct ForwardSweep {
  SweepStatistics statistics;
  const T* e;              // [padded T, e_columns]
  const T* c;              // [V, C]
  int64_t e_columns;       // C, padded
  int64_t hidden_size;     // C
  int64_t stride_c_row;    // elements
  int64_t vocab_block;     // vocabulary rows of one part, whole tiles
  int64_t num_splits;      // stretches of vocabulary blocks
  int64_t row_tile_group;  // tiles of rows whose e stays in L2

  TOKCORE_DEVICE int first_block(int split) const {
    const int block = static_cast<int>(vocab_block);
    const int num_blocks = (static_cast<int>(statistics.vocab_size) - 1) / block + 1;
    return split * num_blocks / static_cast<int>(num_splits);
  }
};

// What each active position brings to dz = p (prob + plogp (z - lse)) + sum w; of those past the last one, nothing.
struct alignas(16) GradientRow {
  float lse;
  float prob;
  float plogp;
  float sum;
};

// dL/d(e c^T + bias) of one logit z, but for what indices ask for. A p below the filter's threshold counts as 0, a NaN
// does not.
struct LogitGradient {
  LogitTransform transform;
  float filter_log_eps;
  bool has_plogp, has_sum;

  TOKCORE_DEVICE float operator()(float z, const GradientRow& row, float weight) const {
    const float log_p = z - row.lse;
    float factor = row.prob;
    if (has_plogp) factor = fmaf(row.plogp, fmaxf(log_p, -200.0f), factor);
    float gradient = cuda::exp_approx(log_p) * factor;
    if (log_p < filter_log_eps) gradient = 0.0f;
    if (has_sum) gradient = fmaf(row.sum, weight, gradient);
    return transform.is_linear() ? gradient : gradient * transform.slope(z);
  }
};

// Which active positions a tile of 128 vocabulary rows works on: all of them, or those that the filter left.
struct Survivors {
  const int32_t* rows;    // [tiles, padded T] ascending; or null: all
  const int32_t* counts;  // [tiles]
  const uint32_t* bits;   // [tiles, words] bit a % 32 of word a / 32: active position a is one of them
  const int32_t* before;  // [tiles, words] survivors in the words before
  int64_t words;

  TOKCORE_DEVICE int64_t count(int64_t tile, int64_t all) const { return rows == nullptr ? all : counts[tile]; }
  // Where active position `active` stands among the survivors of a tile, or -1.
  TOKCORE_DEVICE int64_t rank(int64_t tile, int64_t active) const {
    if (rows == nullptr) return active;
    const int64_t word = tile * words + active / 32;
    const uint32_t mask = bits[word], bit = 1u << (active % 32);
    return (mask & bit) == 0 ? -1 : before[word] + __popc(mask & (bit - 1));
  }
};

// dz of a chunk of vocabulary rows, by tiles of 128: row i of a tile belongs to its i-th survivor.
template <class T>
struct GradientTiles {
  T* data;
  int64_t tile_stride;  // elements
  int64_t row_stride;
  int64_t columns;  // of the chunk that there are, at most 128 of them a tile

  TOKCORE_DEVICE T* row(int64_t tile, int64_t row) const { return data + tile * tile_stride + row * row_stride; }
  TOKCORE_DEVICE int64_t columns_of(int64_t tile) const { return columns - tile * kGradientTile; }
  TOKCORE_HOST_DEVICE bool is_matrix() const { return tile_stride == kGradientTile; }
};

// Makes dz of a chunk.
template <class T>
struct DifferentiateSweep {
  LogitGradient gradient;
  ActivePositions active;
  Survivors survivors;
  GradientTiles<T> dz;
  const T* e;                   // [padded T, e_columns] of active positions
  const T* c;                   // [V, C]
  int64_t e_columns;            // C, padded
  int64_t hidden_size;          // C
  int64_t stride_c_row;         // elements
  const GradientRow* rows;      // [padded T]
  const float* class_weight;    // [V] or null
  const float* logits;          // [T, K]
  const float* grad_logits;     // [T, K]
  float* bias_sums = nullptr;   // [row parts, num_tiles * 128] sums of dz over the rows of a warp; or null
  int32_t* nonzeros = nullptr;  // [tiles, nonzeros_stride] of dz, in what each warp makes; or null
  int64_t nonzeros_stride;
  int64_t vocab_size;       // V
  int64_t first_vocab_row;  // of the chunk
  int64_t num_tiles;        // of the chunk
  int64_t row_tile_group;   // tiles of rows whose e stays in L2
};

// grad_c of a chunk: dz^T e.
template <class T>
struct ClassifierProduct {
  ActivePositions active;
  Survivors survivors = {};
  GradientTiles<T> dz;
  const T* e;                           // [padded T, e_columns] of active positions
  int64_t e_columns;                    // C, padded
  int64_t hidden_size;                  // C
  const float* class_weight = nullptr;  // [V] or null
  const float* uniform = nullptr;       // [C] added to row v as often as its weight says; or null
  float* sums = nullptr;                // [V, C] or null
  T* grad_c = nullptr;                  // [V, C] or null: the result goes to sums
  int64_t vocab_size;
  int64_t first_vocab_row = 0;
  int64_t num_tiles;
  int64_t first_active = 0;  // of the e rows that dz belongs to
  int64_t num_rows;          // at most this many
  bool continues = false;    // begin with what sums holds
};

// grad_e of the active positions from first_active on: adds dz c of a chunk.
template <class T>
struct HiddenProduct {
  ActivePositions active;
  Survivors survivors = {};
  GradientTiles<T> dz;
  const T* c;                      // [V, C]
  int64_t hidden_size;             // C
  int64_t stride_c_row;            // elements
  const int32_t* tiles = nullptr;  // [*num_listed] tiles to take; or null: all
  const int32_t* num_listed = nullptr;
  float* sums;           // [padded T, sums_columns]
  int64_t sums_columns;  // C, padded
  int64_t vocab_size;
  int64_t first_vocab_row = 0;
  int64_t num_tiles;
  int64_t first_active = 0;
  int64_t num_rows;
  bool continues = false;  // begin with what sums holds
};

// What the kernels from compute capability 8.0 on leave is counted by the part of a tile that a warp makes.
template <class T>
struct TileSm80 {
  static constexpr int kRows = sizeof(T) == 4 ? 64 : 128;
  static constexpr int kWarpRows = kRows / 2;
  static constexpr int kWarpColumns = sizeof(T) == 4 ? 32 : 64;
  static constexpr int kBlocksPerMultiprocessor = sizeof(T) == 4 ? 1 : 2;
};

// One kernel for each architecture, element type and alignment of c (rows and base are multiples of 16 bytes).
template <class T, bool kAligned>
void launch_forward_sweep_sm80(const ForwardSweep<T>& sweep, cuda::Stream stream);
template <class T, bool kAligned>
void launch_differentiate_sm80(const DifferentiateSweep<T>& sweep, cuda::Stream stream);
template <class T>
void launch_classifier_product_sm80(const ClassifierProduct<T>& product, cuda::Stream stream);
template <class T, bool kAligned>
void launch_hidden_product_sm80(const HiddenProduct<T>& product, cuda::Stream stream);

// On Hopper, for 16-bit elements, aligned rows of c and all active positions.
template <class T>
void launch_forward_sweep_sm90(const ForwardSweep<T>& sweep, cuda::Stream stream);
template <class T>
void launch_differentiate_sm90(const DifferentiateSweep<T>& sweep, cuda::Stream stream);
template <class T>
void launch_classifier_product_sm90(const ClassifierProduct<T>& product, cuda::Stream stream);
template <class T>
void launch_hidden_product_sm90(const HiddenProduct<T>& product, cuda::Stream stream);

}  // namespace tokcore::cross_entropy
