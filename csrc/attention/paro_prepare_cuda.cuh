// paro_prepare: two passes over k and v for the keys' mean and the values' scales, where these are wanted, and one over
// everything that makes the codes, 64 rows a block.
// Included once by a .cu file, and once by the tests for the execution on the CPU.
#pragma once

#include "attention/paro_rows_cuda.cuh"

namespace tokcore::attention {

struct PrepareTask {
  ParoPrepareParams params;
  ParoOrders orders;
  int chunks;       // of 64 tokens or positions
  int pairs;        // (batch, key head)
  float* sums;      // [pairs, chunks, D] of the rotated keys, or null
  uint32_t* mosts;  // [pairs, chunks, D] greatest |v| as bits, or null
  float* inverses;  // [pairs, Dv] of the values' scales, or null

  TOKCORE_DEVICE int kept_of(int chunk) const {
    return static_cast<int>(min(params.shape.length - int64_t{chunk} * kParoGroup, kParoGroup));
  }
  template <class T>
  TOKCORE_DEVICE const T* rows_of_pair(const HeadsView& view, int pair) const {
    const int num_heads = static_cast<int>(params.shape.num_kv_heads);
    return rows_of_head<T>(view, pair / num_heads, pair % num_heads);
  }
};

// Of 64 tokens in their own order: the sum of the rotated keys, the greatest value of each channel.
// Grid: a block for each 64 tokens of each pair.
template <class T>
__global__ void __launch_bounds__(kPrepareThreads, kPrepareBlocks)
    paro_survey_kernel(const __grid_constant__ PrepareTask task) {
  TOKCORE_SHARED_MEMORY(shared);
  const ParoPrepareParams& params = task.params;
  const int item = static_cast<int>(blockIdx.x), pair = item / task.chunks, chunk = item % task.chunks;
  const int head_dim = static_cast<int>(params.shape.head_dim), thread = static_cast<int>(threadIdx.x);
  const ParoRows rows(shared, static_cast<int>(params.shape.code_dim()), task.kept_of(chunk));
  const auto token_of = [&](int row) { return chunk * kGroupRows + row; };

  if (task.sums != nullptr) {
    rows.load(task.template rows_of_pair<T>(params.k, pair), params.k.stride_row, head_dim, token_of);
    rows.rotate(params.rotation, head_dim);
    __syncthreads();
    if (thread < head_dim) {
      float sum = 0.0f;
      for (int row = 0; row < rows.kept; ++row) sum = __fadd_rn(sum, rows.at(row, thread));
      task.sums[int64_t{item} * head_dim + thread] = sum;
    }
    __syncthreads();
  }
  if (task.mosts == nullptr) return;
  rows.load(task.template rows_of_pair<T>(params.v, pair), params.v.stride_row, head_dim, token_of);
  __syncthreads();
  if (thread < head_dim) {
    uint32_t most = 0;
    for (int row = 0; row < rows.kept; ++row) {
      const uint32_t bits = magnitude_bits(rows.at(row, thread));
      most = bits > most ? bits : most;
    }
    task.mosts[int64_t{item} * head_dim + thread] = most;
  }
}

// The mean of the keys and the scales of the values. Grid: a thread for each channel of each pair.
__global__ void __launch_bounds__(64) paro_combine_kernel(const __grid_constant__ PrepareTask task) {
  const ParoPrepareParams& params = task.params;
  const int64_t width = params.shape.value_dim(), D = params.shape.head_dim;
  const int64_t index = int64_t{blockIdx.x} * 64 + threadIdx.x, pair = index / width, channel = index % width;
  if (pair >= task.pairs) return;
  if (channel >= D) {
    if (task.inverses != nullptr) task.inverses[index] = 0.0f;
    return;
  }
  const int64_t first = pair * task.chunks * D + channel, at = pair * D + channel;
  if (task.sums != nullptr) {
    double total = 0.0;
#pragma unroll 8
    for (int64_t chunk = 0; chunk < task.chunks; ++chunk) total += static_cast<double>(task.sums[first + chunk * D]);
    params.k_mean[at] = static_cast<float>(total / static_cast<double>(params.shape.length));
  }
  if (task.mosts != nullptr) {
    uint32_t most = 0;
#pragma unroll 8
    for (int64_t chunk = 0; chunk < task.chunks; ++chunk) {
      const uint32_t other = task.mosts[first + chunk * D];
      most = other > most ? other : most;
    }
    const ParoGroupScale found = ParoGroupScale::of(most, params.pv);
    params.v_scale[at] = found.scale;
    task.inverses[index] = found.inverse;
  }
}

// The codes of a row of queries or keys, by its warp: words of four bytes.
TOKCORE_DEVICE void store_code_row(const ParoRows& rows, int row, float inverse, ParoFormat format, uint32_t* to) {
  const int words = rows.width / (format == ParoFormat::kBf16 ? 2 : format == ParoFormat::kInt8 ? 4 : 8);
  for (int word = rows.lane; word < words; word += 32) {
    uint32_t bits = 0;
    if (format == ParoFormat::kBf16) {
      bits = bf16_pair(rows.at(row, 2 * word), rows.at(row, 2 * word + 1));
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        uint32_t byte = paro_code(rows.at(row, 4 * word + i), inverse, format);
        if (format == ParoFormat::kInt4) {
          byte |= paro_code(rows.at(row, 4 * word + i + rows.width / 2), inverse, format) << 4;
        }
        bits |= byte << 8 * i;
      }
    }
    to[word] = bits;
  }
}
TOKCORE_DEVICE uint32_t* code_row(void* codes, int64_t row, int64_t row_bytes) {
  return reinterpret_cast<uint32_t*>(static_cast<unsigned char*>(codes) + row * row_bytes);
}

template <class T>
TOKCORE_DEVICE void make_queries(const PrepareTask& task, const ParoRows& rows, int head_of_batch, int chunk) {
  const ParoPrepareParams& params = task.params;
  const ParoShape& shape = params.shape;
  const int num_heads = static_cast<int>(shape.num_heads), num_kv_heads = static_cast<int>(shape.num_kv_heads);
  const int batch = head_of_batch / num_heads, head = head_of_batch % num_heads;
  const int kv_head = head / (num_heads / num_kv_heads), pair = batch * num_kv_heads + kv_head;
  const int head_dim = static_cast<int>(shape.head_dim), first = chunk * kGroupRows;
  const ParoOrders::Walk& walk = task.orders.walk_of(kv_head);
  rows.load(rows_of_head<T>(params.q, batch, head), params.q.stride_row, head_dim,
            [&](int row) { return task.orders.token(walk, first + row); });
  rows.rotate(params.rotation, head_dim);
  const float* mean = params.k_mean == nullptr ? nullptr : params.k_mean + pair * shape.head_dim;
  const int64_t first_row = head_of_batch * shape.padded_length() + first, row_bytes = shape.row_bytes(params.qk);
  rows.for_own_rows([&](int row) {
    if (params.mean_score != nullptr && row < rows.kept) {
      float sum = 0.0f;
      if (mean != nullptr) {
        for (int channel = rows.lane; channel < head_dim; channel += 32) {
          sum = fmaf(rows.at(row, channel), mean[channel], sum);
        }
      }
      for (int step = 1; step < 32; step *= 2) sum += __shfl_xor_sync(cuda::kAllLanes, sum, step);
      if (rows.lane == 0) params.mean_score[head_of_batch * shape.length + first + row] = sum;
    }
    float inverse = 0.0f;
    if (is_quantized(params.qk)) {
      const ParoGroupScale found = ParoGroupScale::of(rows.most_of_row(row), params.qk);
      if (rows.lane == 0) params.q_scale[first_row + row] = found.scale;
      inverse = found.inverse;
    }
    store_code_row(rows, row, inverse, params.qk, code_row(params.q_codes, first_row + row, row_bytes));
  });
}

template <class T>
TOKCORE_DEVICE void make_keys(const PrepareTask& task, const ParoRows& rows, int pair, int chunk) {
  const ParoPrepareParams& params = task.params;
  const ParoShape& shape = params.shape;
  const int head_dim = static_cast<int>(shape.head_dim), first = chunk * kGroupRows;
  const ParoOrders::Walk& walk = task.orders.walk_of(pair % static_cast<int>(shape.num_kv_heads));
  rows.load(task.template rows_of_pair<T>(params.k, pair), params.k.stride_row, head_dim,
            [&](int row) { return task.orders.token(walk, first + row); });
  rows.rotate(params.rotation, head_dim);
  if (params.k_mean != nullptr) {
    const float* mean = params.k_mean + pair * shape.head_dim;
    rows.for_own_rows([&](int row) {
      if (row >= rows.kept) return;
      for (int channel = rows.lane; channel < head_dim; channel += 32) {
        rows.at(row, channel) = __fsub_rn(rows.at(row, channel), mean[channel]);
      }
    });
    __syncwarp();
  }
  float inverse = 0.0f;
  if (is_quantized(params.qk)) {
    uint32_t most = 0;
    rows.for_own_rows([&](int row) {
      const uint32_t bits = rows.most_of_row(row);
      most = bits > most ? bits : most;
    });
    const ParoGroupScale found = ParoGroupScale::of(rows.most_of_block(most), params.qk);
    if (threadIdx.x == 0) params.k_scale[pair * task.chunks + chunk] = found.scale;
    inverse = found.inverse;
  }
  const int64_t first_row = pair * shape.padded_length() + first, row_bytes = shape.row_bytes(params.qk);
  rows.for_own_rows([&](int row) {
    store_code_row(rows, row, inverse, params.qk, code_row(params.k_codes, first_row + row, row_bytes));
  });
}

template <class T>
TOKCORE_DEVICE void make_values(const PrepareTask& task, const ParoRows& rows, int pair, int chunk) {
  const ParoPrepareParams& params = task.params;
  const ParoShape& shape = params.shape;
  const int first = chunk * kGroupRows;
  const ParoOrders::Walk& walk = task.orders.walk_of(pair % static_cast<int>(shape.num_kv_heads));
  rows.load(task.template rows_of_pair<T>(params.v, pair), params.v.stride_row, static_cast<int>(shape.head_dim),
            [&](int row) { return task.orders.token(walk, first + row); });
  if (params.pv == ParoFormat::kBf16) {
    rows.for_own_rows([&](int row) {
      uint32_t* to = code_row(params.v_codes, pair * shape.padded_length() + first + row, shape.code_dim() * 2);
      store_code_row(rows, row, 0.0f, ParoFormat::kBf16, to);
    });
    return;
  }
  __syncthreads();  // a channel's codes are made of all rows
  const bool halves = params.pv == ParoFormat::kInt4;
  const int line_words = kGroupRows / (halves ? 8 : 4), words = static_cast<int>(shape.value_dim()) * line_words;
  uint32_t* to = code_row(params.v_codes, pair * task.chunks + chunk, shape.value_block_bytes(params.pv));
  for (int word = static_cast<int>(threadIdx.x); word < words; word += kPrepareThreads) {
    const int channel = word / line_words, position = word % line_words * 4;
    const float inverse = task.inverses[pair * shape.value_dim() + channel];
    uint32_t bits = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint32_t byte = paro_code(rows.at(position + i, channel), inverse, params.pv);
      if (halves) byte |= paro_code(rows.at(position + i + kGroupRows / 2, channel), inverse, params.pv) << 4;
      bits |= byte << 8 * i;
    }
    to[word] = bits;
  }
}

// Codes and scales. Grid: a block for each 64 positions of each query head, then of the keys and the values of each
// pair.
template <class T>
__global__ void __launch_bounds__(kPrepareThreads, kPrepareBlocks)
    paro_codes_kernel(const __grid_constant__ PrepareTask task) {
  TOKCORE_SHARED_MEMORY(shared);
  const int index = static_cast<int>(blockIdx.x) / task.chunks, chunk = static_cast<int>(blockIdx.x) % task.chunks;
  const int query_heads = static_cast<int>(task.params.shape.batch * task.params.shape.num_heads);
  const ParoRows rows(shared, static_cast<int>(task.params.shape.code_dim()), task.kept_of(chunk));
  if (index < query_heads) {
    make_queries<T>(task, rows, index, chunk);
  } else if (index < query_heads + task.pairs) {
    make_keys<T>(task, rows, index - query_heads, chunk);
  } else {
    make_values<T>(task, rows, index - query_heads - task.pairs, chunk);
  }
}

inline PrepareTask plan_prepare(const ParoPrepareParams& params, cuda::WorkspacePlan& workspace) {
  const ParoShape& shape = params.shape;
  PrepareTask task = {params, ParoOrders::of(params.grid, params.permutation, shape.num_kv_heads),
                      static_cast<int>(ceil_div(shape.length, kParoGroup)),
                      static_cast<int>(shape.batch * shape.num_kv_heads)};
  const int64_t surveyed = int64_t{task.pairs} * task.chunks * shape.head_dim;
  if (params.k_mean != nullptr) task.sums = workspace.take<float>(surveyed);
  if (params.v_scale != nullptr) {
    task.mosts = workspace.take<uint32_t>(surveyed);
    task.inverses = workspace.take<float>(task.pairs * shape.value_dim());
  }
  return task;
}

template <class T>
void launch_prepare(const PrepareTask& task, cuda::Stream stream) {
  const ParoShape& shape = task.params.shape;
  const int64_t surveyed = int64_t{task.pairs} * task.chunks, query_items = shape.batch * shape.num_heads * task.chunks;
  const auto over = [&](int64_t blocks, const char* name) {
    cuda::LaunchConfig config = cuda::launch_over(blocks, 1, kPrepareThreads, stream, name);
    config.shared_bytes = static_cast<size_t>(ParoRows::bytes(shape.code_dim()));
    return config;
  };
  if (task.params.k_mean != nullptr || task.params.v_scale != nullptr) {
    cuda::launch<paro_survey_kernel<T>>(over(surveyed, "paro_survey"), task);
    cuda::launch<paro_combine_kernel>(cuda::launch_over(task.pairs * shape.value_dim(), 64, 64, stream, "paro_combine"),
                                      task);
  }
  cuda::launch<paro_codes_kernel<T>>(over(query_items + 2 * surveyed, "paro_codes"), task);
}

}  // namespace tokcore::attention

namespace tokcore {

size_t paro_prepare_workspace_cuda(const ParoPrepareParams& params, const CudaMachine&) {
  cuda::WorkspacePlan workspace;
  attention::plan_prepare(params, workspace);
  return workspace.used();
}

void run_paro_prepare_cuda(const ParoPrepareParams& params, const CudaCall& call) {
  cuda::WorkspacePlan workspace(call.workspace);
  const attention::PrepareTask task = attention::plan_prepare(params, workspace);
  with_dtype(params.dtype, [&]<class T>(T) { attention::launch_prepare<T>(task, call.stream); });
}

}  // namespace tokcore
