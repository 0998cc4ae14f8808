// The backward's lesser kernels: what it needs before the products, and what it does with their sums.
#pragma once

#include "cross_entropy/linear_logprobs_sweeps_cuda.cuh"
#include "tokcore/cuda/launch.h"

namespace tokcore::cross_entropy {

inline constexpr unsigned kGradientThreads = 256;

struct PackGradientRows {
  ActivePositions active;
  const float* lse;         // [T]
  const float* grad_prob;   // [T]
  const float* grad_plogp;  // [T] or null
  const float* grad_sum;    // [T] or null
  GradientRow* rows;        // [padded T]
};

// Grid: a thread for each row. Past the last active position everything is 0.
template <int = 0>
__global__ void pack_gradient_rows_kernel(const PackGradientRows params) {
  const int64_t active = int64_t{blockIdx.x} * kGradientThreads + threadIdx.x;
  if (active >= params.active.padded) return;
  GradientRow row = {};
  if (active < *params.active.count) {
    const int64_t t = params.active.positions[active];
    row = {params.lse[t], params.grad_prob[t], params.grad_plogp != nullptr ? params.grad_plogp[t] : 0.0f,
           params.grad_sum != nullptr ? params.grad_sum[t] : 0.0f};
  }
  params.rows[active] = row;
}

// ---- sums of dz over positions: the gradient of the bias ------------------------------------------------------------

struct BiasGradient {
  ActivePositions active;
  Survivors survivors = {};
  const float* sums;  // [row parts, num_tiles * 128]
  int64_t rows_of_part;
  const float* class_weight = nullptr;  // [V] or null
  const double* uniform = nullptr;      // [1] added as often as the weight says; or null
  float* grad_bias;                     // [V]
  int64_t vocab_size;
  int64_t first_vocab_row = 0;
  int64_t num_tiles;
  int64_t first_active = 0;
  int64_t num_rows;
  bool continues = false;  // add to grad_bias
};

// Grid: a thread for each vocabulary row of the chunk.
template <int = 0>
__global__ void bias_gradient_kernel(const BiasGradient params) {
  const int64_t column = int64_t{blockIdx.x} * kGradientThreads + threadIdx.x;
  const int64_t v = params.first_vocab_row + column;
  const int64_t columns = params.num_tiles * kGradientTile;
  if (column >= columns || v >= params.vocab_size) return;
  const int64_t rows =
      params.survivors.count(column / kGradientTile, params.active.count_from(params.first_active, params.num_rows));
  float sum = params.continues ? params.grad_bias[v] : 0.0f;
  for (int64_t part = 0; part < ceil_div(rows, params.rows_of_part); ++part)
    sum += params.sums[part * columns + column];
  if (params.uniform != nullptr) {
    sum =
        fmaf(params.class_weight != nullptr ? params.class_weight[v] : 1.0f, static_cast<float>(*params.uniform), sum);
  }
  params.grad_bias[v] = sum;
}

// ---- the uniform term -----------------------------------------------------------------------------------------------

// Sums in double, first of `kUniformParts` stretches of rows, then of these.
inline constexpr int64_t kUniformParts = 64;

// The uniform term of label smoothing reaches every vocabulary row, also where the filter drops the tile. Without a
// softcap it is a product of two vectors: grad_e_t += u_t sum_v w_v c_v and grad_c_v += w_v sum_t u_t e_t.
template <class T>
struct UniformSums {
  ActivePositions active;
  const T* rows = nullptr;  // [num_rows, columns of stride] summed with weights
  int64_t stride_row = 0;
  int64_t num_rows;                            // -1: the active positions
  int64_t num_columns;                         // 0: the weights themselves are summed, as one column
  const float* weights = nullptr;              // [num_rows], or of GradientRow::sum; or null: 1
  const GradientRow* gradient_rows = nullptr;  // taken in place of weights; or null
  float slope;
  double* parts;  // [kUniformParts, max(num_columns, 1)]
};

// Grid: blocks of columns by parts.
template <class T>
__global__ void uniform_parts_kernel(const UniformSums<T> params) {
  const int64_t column = int64_t{blockIdx.x} * kGradientThreads + threadIdx.x;
  const int64_t columns = max(params.num_columns, 1);
  if (column >= columns) return;
  const int64_t rows = params.num_rows < 0 ? *params.active.count : params.num_rows;
  const int64_t part = blockIdx.y;
  double sum = 0.0;
  for (int64_t row = part * rows / kUniformParts; row < (part + 1) * rows / kUniformParts; ++row) {
    float weight = params.weights != nullptr ? params.weights[row] : 1.0f;
    if (params.gradient_rows != nullptr) weight = params.gradient_rows[row].sum;
    const float value = params.num_columns > 0 ? to_float(params.rows[row * params.stride_row + column]) : 1.0f;
    sum += static_cast<double>(weight * params.slope * value);
  }
  params.parts[part * columns + column] = sum;
}

template <class Out>
struct UniformTotal {
  const double* parts;  // [kUniformParts, num_columns]
  int64_t num_columns;
  Out* total;  // [num_columns]
};

// Grid: a thread for each column.
template <class Out>
__global__ void uniform_total_kernel(const UniformTotal<Out> params) {
  const int64_t column = int64_t{blockIdx.x} * kGradientThreads + threadIdx.x;
  if (column >= params.num_columns) return;
  double sum = 0.0;
  for (int64_t part = 0; part < kUniformParts; ++part) sum += params.parts[part * params.num_columns + column];
  params.total[column] = static_cast<Out>(sum);
}

// ---- grad_e ---------------------------------------------------------------------------------------------------------

template <class T>
struct StoreHidden {
  ActivePositions active;
  const int32_t* active_of;  // [T]
  const float* sums;         // [padded T, sums_columns]
  int64_t sums_columns;
  const GradientRow* rows;         // [padded T]
  const float* uniform = nullptr;  // [C] added as often as the row's `sum` says; or null
  T* grad_e;                       // [T, C]
  int64_t num_positions;
  int64_t hidden_size;
  int64_t shift;
};

// Grid: a block for each row of e. Position t's gradient goes to row t - shift; rows that none reads get zeros.
template <class T>
__global__ void store_hidden_kernel(const StoreHidden<T> params) {
  const int64_t row = blockIdx.x;
  const int64_t position = row + params.shift;
  const int64_t active = position < params.num_positions ? params.active_of[position] : -1;
  for (int64_t h = threadIdx.x; h < params.hidden_size; h += kGradientThreads) {
    float value = active < 0 ? 0.0f : params.sums[active * params.sums_columns + h];
    if (active >= 0 && params.uniform != nullptr) value = fmaf(params.rows[active].sum, params.uniform[h], value);
    params.grad_e[row * params.hidden_size + h] = from_float<T>(value);
  }
}

}  // namespace tokcore::cross_entropy
