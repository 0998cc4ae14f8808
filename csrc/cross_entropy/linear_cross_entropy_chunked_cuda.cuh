// Loss and gradients in one pass over chunks of positions: the forward's sweep leaves a chunk's logits in the
// workspace, which turn into dz where they lie and are multiplied by e and by c.
#pragma once

#include "cross_entropy/linear_logprobs_run_cuda.cuh"

namespace tokcore::cross_entropy {

inline constexpr unsigned kChunkThreads = 256;
inline constexpr int64_t kChunkBiasRows = 128;  // whose dz one thread sums

struct PositionLoss {
  ActivePositions active;
  int64_t first_active;
  int64_t num_rows;
  const float* lse;            // [T]
  const float* logits;         // [T] of the targets
  const float* logit_sum;      // [T], with smooth_scale
  const float* nll_scale;      // [T]
  const float* smooth_scale;   // [T] or null
  const float* square_scale;   // [T] or null
  const double* total_weight;  // [1], with smooth_scale
  GradientRow* rows;           // [padded T]
  float* grad_targets;         // [padded T]
  double* losses;              // [T]
};

// Grid: a thread for each position of the chunk: its loss, and what it brings to dz.
template <int = 0>
__global__ void position_loss_kernel(const PositionLoss params) {
  const int64_t row = int64_t{blockIdx.x} * kChunkThreads + threadIdx.x;
  if (row >= params.active.count_from(params.first_active, params.num_rows)) return;
  const int64_t active = params.first_active + row;
  const int64_t t = params.active.positions[active];
  const double lse = static_cast<double>(params.lse[t]);
  const double nll = static_cast<double>(params.nll_scale[t]);
  double loss = nll * (lse - static_cast<double>(params.logits[t]));
  double probability = nll, smooth = 0.0;
  if (params.smooth_scale != nullptr) {
    smooth = static_cast<double>(params.smooth_scale[t]);
    loss += smooth * (*params.total_weight * lse - static_cast<double>(params.logit_sum[t]));
    probability += smooth * *params.total_weight;
  }
  if (params.square_scale != nullptr) {
    const double square = static_cast<double>(params.square_scale[t]);
    loss += square * lse * lse;
    probability += 2.0 * square * lse;
  }
  params.losses[active] = loss;
  params.rows[active] = {params.lse[t], static_cast<float>(probability), 0.0f, static_cast<float>(-smooth)};
  params.grad_targets[active] = static_cast<float>(-nll);
}

struct SumLosses {
  ActivePositions active;
  const double* losses;  // [T]
  float* total;          // [1]
};

// One block, which adds in a fixed order.
template <int = 0>
__global__ void sum_losses_kernel(const SumLosses params) {
  TOKCORE_SHARED_MEMORY(shared);
  double* sums = reinterpret_cast<double*>(shared);  // [kChunkThreads]
  double sum = 0.0;
  for (int64_t i = threadIdx.x; i < *params.active.count; i += kChunkThreads) sum += params.losses[i];
  sums[threadIdx.x] = sum;
  for (unsigned half = kChunkThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *params.total = static_cast<float>(sums[0]);
}

// dz of the chunk's stored logits.
struct ChunkGradient {
  LogitGradient gradient;
  ActivePositions active;
  const GradientRow* rows;    // [padded T]
  const float* grad_targets;  // [padded T]
  const float* class_weight;  // [V] or null
  int64_t vocab_size;
  int64_t first_active;
  int64_t num_rows;
  float* logits;   // [num_rows, stride]
  int64_t stride;  // V rounded up to 32

  TOKCORE_DEVICE float at(int64_t row, int64_t v, float z) const {
    if (v >= vocab_size) return 0.0f;
    const int64_t position = first_active + row;
    const float weight = gradient.has_sum && class_weight != nullptr ? class_weight[v] : 1.0f;
    float value = gradient(z, rows[position], weight);
    if (v == active.indices[position]) value = fmaf(grad_targets[position], gradient.transform.slope(z), value);
    return value;
  }
};

struct ChunkBiasSums {
  ChunkGradient chunk;
  float* sums;      // [row parts, columns]
  int64_t columns;  // V in whole tiles
};

// Grid: a thread for each vocabulary row by parts of the chunk's rows. In fp32, before dz is rounded.
template <int = 0>
__global__ void chunk_bias_sums_kernel(const ChunkBiasSums params) {
  const ChunkGradient& chunk = params.chunk;
  const int64_t v = int64_t{blockIdx.x} * kChunkThreads + threadIdx.x;
  const int64_t part = blockIdx.y;
  if (v >= chunk.vocab_size) return;
  const int64_t num_rows = chunk.active.count_from(chunk.first_active, chunk.num_rows);
  float sum = 0.0f;
  for (int64_t row = part * kChunkBiasRows; row < min((part + 1) * kChunkBiasRows, num_rows); ++row) {
    sum += chunk.at(row, v, chunk.logits[row * chunk.stride + v]);
  }
  params.sums[part * params.columns + v] = sum;
}

// Grid: a block for each row of the chunk. An element of T takes no more room than its logit: the row is rewritten from
// its start, each stretch after all of the block have read it.
template <class T>
__global__ void chunk_gradient_kernel(const ChunkGradient chunk) {
  constexpr int kElements = 16 / static_cast<int>(sizeof(T));
  constexpr int64_t kRowsOfStep = 64;  // that a product may read at a time: those past the last one are zero
  const int64_t row = blockIdx.x;
  const int64_t num_rows = chunk.active.count_from(chunk.first_active, chunk.num_rows);
  if (row >= round_up(num_rows, kRowsOfStep)) return;
  const bool is_active = row < num_rows;
  float* logits = chunk.logits + row * chunk.stride;
  T* dz = reinterpret_cast<T*>(logits);
  for (int64_t first = 0; first < chunk.stride; first += kChunkThreads * kElements) {
    const int64_t v = first + threadIdx.x * kElements;
    const bool inside = v < chunk.stride;
    alignas(16) float z[kElements];
    alignas(16) T values[kElements];
#pragma unroll
    for (int i = 0; i < kElements; i += 4) {
      *reinterpret_cast<float4*>(z + i) = inside ? *reinterpret_cast<const float4*>(logits + v + i) : float4{};
    }
#pragma unroll
    for (int i = 0; i < kElements; ++i) {
      values[i] = from_float<T>(inside && is_active ? chunk.at(row, v + i, z[i]) : 0.0f);
    }
    __syncthreads();
    if (inside) *reinterpret_cast<uint4*>(dz + v) = *reinterpret_cast<const uint4*>(values);
  }
}

template <class T, class Kernels>
class ChunkedLoss {
 public:
  ChunkedLoss(const LinearCrossEntropyChunkedParams& params, const CudaMachine& machine, void* workspace)
      : plan_(workspace),
        params_(params),
        forward_params_(forward_of(params)),
        packed_(params, plan_),
        forward_(forward_params_, packed_, params.chunk_size, machine, plan_),
        num_tiles_(ceil_div(params.vocab_size, kGradientTile)) {
    const int64_t padded = packed_.active().padded;
    rows_ = plan_.take<GradientRow>(padded);
    grad_targets_ = plan_.take<float>(padded);
    losses_ = plan_.take<double>(padded);
    if (params.grad_e != nullptr) sums_e_ = plan_.take<float>(padded * packed_.columns());
    if (params.grad_bias != nullptr) bias_sums_ = plan_.take<float>(num_bias_parts() * num_tiles_ * kGradientTile);
    if (params.smooth_scale != nullptr) {
      weight_parts_ = plan_.take<double>(kUniformParts);
      total_weight_ = plan_.take<double>(1);
    }
  }
  size_t workspace() const { return plan_.used(); }

  void run(const ActiveRule& rule, float* loss, cuda::Stream stream) const {
    packed_.find(rule, params_.logits, stream);
    if (params_.smooth_scale != nullptr) sum_weights(stream);
    const int64_t num_chunks = max(ceil_div(params_.num_positions, params_.chunk_size), 1);
    for (int64_t chunk = 0; chunk < num_chunks; ++chunk) {
      run_chunk(chunk * params_.chunk_size, chunk + 1 == num_chunks, stream);
    }
    const SumLosses sum = {.active = packed_.active(), .losses = losses_, .total = loss};
    cuda::launch<sum_losses_kernel<>>({.grid = {1},
                                       .threads = kChunkThreads,
                                       .shared_bytes = kChunkThreads * sizeof(double),
                                       .stream = stream,
                                       .name = "sum_losses"},
                                      sum);
    if (params_.grad_e != nullptr) store_hidden(stream);
  }

 private:
  static LinearLogprobsForwardParams forward_of(const LinearCrossEntropyChunkedParams& params) {
    LinearLogprobsForwardParams forward = {};
    static_cast<LinearLogitsParams&>(forward) = params;
    forward.wants_logit_sum = params.smooth_scale != nullptr;
    forward.lse = params.lse;
    forward.gathered = params.logits;
    forward.logit_sum = params.logit_sum;
    forward.stored_logits = params.workspace;
    return forward;
  }
  int64_t stride() const { return round_up(params_.vocab_size, kFilterTile); }
  int64_t num_bias_parts() const { return ceil_div(params_.chunk_size, kChunkBiasRows); }

  void sum_weights(cuda::Stream stream) const {
    const UniformSums<T> sums = {.active = packed_.active(),
                                 .num_rows = params_.vocab_size,
                                 .num_columns = 0,
                                 .weights = params_.class_weight,
                                 .slope = 1.0f,
                                 .parts = weight_parts_};
    cuda::LaunchConfig config = launch_over(1, 1, kGradientThreads, stream, "uniform_parts");
    config.grid.y = kUniformParts;
    cuda::launch<uniform_parts_kernel<T>>(config, sums);
    cuda::launch<uniform_total_kernel<double>>(
        launch_over(1, 1, kGradientThreads, stream, "uniform_total"),
        UniformTotal<double>{.parts = weight_parts_, .num_columns = 1, .total = total_weight_});
  }

  void run_chunk(int64_t first, bool last, cuda::Stream stream) const {
    forward_.run(first, stream);
    const PositionLoss position_loss = {.active = packed_.active(),
                                        .first_active = first,
                                        .num_rows = params_.chunk_size,
                                        .lse = params_.lse,
                                        .logits = params_.logits,
                                        .logit_sum = params_.logit_sum,
                                        .nll_scale = params_.nll_scale,
                                        .smooth_scale = params_.smooth_scale,
                                        .square_scale = params_.square_scale,
                                        .total_weight = total_weight_,
                                        .rows = rows_,
                                        .grad_targets = grad_targets_,
                                        .losses = losses_};
    cuda::launch<position_loss_kernel<>>(
        launch_over(params_.chunk_size, kChunkThreads, kChunkThreads, stream, "position_loss"), position_loss);

    const ChunkGradient chunk = {.gradient = {.transform = LogitTransform(params_),
                                              .filter_log_eps = -__builtin_inff(),
                                              .has_plogp = false,
                                              .has_sum = params_.smooth_scale != nullptr},
                                 .active = packed_.active(),
                                 .rows = rows_,
                                 .grad_targets = grad_targets_,
                                 .class_weight = params_.class_weight,
                                 .vocab_size = params_.vocab_size,
                                 .first_active = first,
                                 .num_rows = params_.chunk_size,
                                 .logits = params_.workspace,
                                 .stride = stride()};
    if (params_.grad_bias != nullptr) add_bias(chunk, stream);
    if (params_.grad_c == nullptr && params_.grad_e == nullptr) return;
    cuda::launch<chunk_gradient_kernel<T>>(launch_over(params_.chunk_size, 1, kChunkThreads, stream, "chunk_gradient"),
                                           chunk);
    if (params_.grad_c != nullptr) multiply_classifier(first, last, stream);
    if (params_.grad_e != nullptr) multiply_hidden(first, stream);
  }

  void add_bias(const ChunkGradient& chunk, cuda::Stream stream) const {
    cuda::LaunchConfig config =
        launch_over(params_.vocab_size, kChunkThreads, kChunkThreads, stream, "chunk_bias_sums");
    config.grid.y = static_cast<unsigned>(num_bias_parts());
    const int64_t columns = num_tiles_ * kGradientTile;
    cuda::launch<chunk_bias_sums_kernel<>>(config,
                                           ChunkBiasSums{.chunk = chunk, .sums = bias_sums_, .columns = columns});
    const BiasGradient bias = {.active = packed_.active(),
                               .sums = bias_sums_,
                               .rows_of_part = kChunkBiasRows,
                               .grad_bias = params_.grad_bias,
                               .vocab_size = params_.vocab_size,
                               .num_tiles = num_tiles_,
                               .first_active = chunk.first_active,
                               .num_rows = params_.chunk_size,
                               .continues = chunk.first_active > 0};
    cuda::launch<bias_gradient_kernel<>>(
        launch_over(columns, kGradientThreads, kGradientThreads, stream, "bias_gradient"), bias);
  }

  GradientTiles<T> dz() const {
    return {.data = reinterpret_cast<T*>(params_.workspace),
            .tile_stride = kGradientTile,
            .row_stride = stride() * static_cast<int64_t>(sizeof(float) / sizeof(T)),
            .columns = stride()};
  }

  void multiply_classifier(int64_t first, bool last, cuda::Stream stream) const {
    const ClassifierProduct<T> product = {.active = packed_.active(),
                                          .dz = dz(),
                                          .e = packed_.rows(),
                                          .e_columns = packed_.columns(),
                                          .hidden_size = params_.hidden_size,
                                          .sums = params_.grad_c_sum,
                                          .grad_c = last ? static_cast<T*>(params_.grad_c) : nullptr,
                                          .vocab_size = params_.vocab_size,
                                          .num_tiles = num_tiles_,
                                          .first_active = first,
                                          .num_rows = params_.chunk_size,
                                          .continues = first > 0};
    Kernels::multiply_classifier(product, stream);
  }

  void multiply_hidden(int64_t first, cuda::Stream stream) const {
    const HiddenProduct<T> product = {.active = packed_.active(),
                                      .dz = dz(),
                                      .c = static_cast<const T*>(params_.c),
                                      .hidden_size = params_.hidden_size,
                                      .stride_c_row = params_.stride_c_row,
                                      .sums = sums_e_,
                                      .sums_columns = packed_.columns(),
                                      .vocab_size = params_.vocab_size,
                                      .num_tiles = num_tiles_,
                                      .first_active = first,
                                      .num_rows = params_.chunk_size};
    Kernels::multiply_hidden(product, has_aligned_rows<T>(params_), stream);
  }

  void store_hidden(cuda::Stream stream) const {
    const StoreHidden<T> store = {.active = packed_.active(),
                                  .active_of = packed_.active_of(),
                                  .sums = sums_e_,
                                  .sums_columns = packed_.columns(),
                                  .rows = rows_,
                                  .grad_e = static_cast<T*>(params_.grad_e),
                                  .num_positions = params_.num_positions,
                                  .hidden_size = params_.hidden_size,
                                  .shift = params_.shift};
    cuda::launch<store_hidden_kernel<T>>(
        launch_over(params_.num_positions, 1, kGradientThreads, stream, "store_hidden"), store);
  }

  cuda::WorkspacePlan plan_;
  const LinearCrossEntropyChunkedParams& params_;
  LinearLogprobsForwardParams forward_params_;
  PackedPositions<T> packed_;
  ForwardSteps<T, Kernels> forward_;
  int64_t num_tiles_;
  GradientRow* rows_;
  float* grad_targets_;
  double* losses_;
  float* sums_e_ = nullptr;
  float* bias_sums_ = nullptr;
  double* weight_parts_ = nullptr;
  double* total_weight_ = nullptr;
};

}  // namespace tokcore::cross_entropy
