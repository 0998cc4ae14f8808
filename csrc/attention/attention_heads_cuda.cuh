// Tensors [B, heads, rows, D] as kernels load them: rows at multiples of 16 bytes, which is what cp.async and TMA can
// address. What does not lie so is copied first, its rows padded with zeros.
#pragma once

#include "tokcore/attention/block_sparse_attention.h"
#include "tokcore/cuda/kernel.h"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/workspace.h"

namespace tokcore::attention {

// Elements of a row, padded to whole chunks of 16 bytes.
template <class T>
constexpr int64_t padded_head_dim(int64_t head_dim) {
  return round_up(head_dim, 16 / static_cast<int64_t>(sizeof(T)));
}

// Calls work with the least compiled head size that holds head_dim.
template <class Work>
void with_head_dim(int64_t head_dim, Work&& work) {
  if (head_dim <= 64) return work(std::integral_constant<int, 64>());
  if (head_dim <= 128) return work(std::integral_constant<int, 128>());
  work(std::integral_constant<int, 256>());
}

template <class T>
bool has_aligned_rows(const HeadsView& view, int64_t head_dim) {
  constexpr int64_t kUnit = 16 / static_cast<int64_t>(sizeof(T));
  return reinterpret_cast<uintptr_t>(view.data) % 16 == 0 && head_dim % kUnit == 0 && view.stride_batch % kUnit == 0 &&
         view.stride_head % kUnit == 0 && view.stride_row % kUnit == 0;
}

// Whether TMA can address a tensor with aligned rows: it has rows, and none of its dimensions repeats its entries or
// lays them 2^40 bytes apart.
template <class T>
bool has_tma_strides(const HeadsView& view, int64_t batch, int64_t num_heads, int64_t num_rows) {
  constexpr int64_t kEnd = (int64_t{1} << 40) / static_cast<int64_t>(sizeof(T));
  const auto suits = [](int64_t count, int64_t stride) { return count == 1 || (stride > 0 && stride < kEnd); };
  return num_rows > 0 && suits(batch, view.stride_batch) && suits(num_heads, view.stride_head) &&
         suits(num_rows, view.stride_row);
}

template <class T>
TOKCORE_DEVICE const T* rows_of_head(const HeadsView& view, int64_t batch, int64_t head) {
  return static_cast<const T*>(view.data) + batch * view.stride_batch + head * view.stride_head;
}

template <class T>
struct AlignRows {
  HeadsView from;     // [B, heads, rows, D]
  T* to;              // [B, heads, rows, padded D]
  int64_t num_heads;  // of a batch entry
  int64_t num_rows;   // of a head
  int64_t head_dim;
  int64_t columns;  // padded D
  int64_t count;    // rows of all heads
};

// One warp a row.
template <class T>
__global__ void __launch_bounds__(128) attention_align_rows_kernel(const AlignRows<T> params) {
  const int64_t index = int64_t{blockIdx.x} * 4 + threadIdx.x / 32;
  if (index >= params.count) return;
  const int64_t row = index % params.num_rows, head = index / params.num_rows;
  const T* from =
      rows_of_head<T>(params.from, head / params.num_heads, head % params.num_heads) + row * params.from.stride_row;
  for (int64_t column = threadIdx.x % 32; column < params.columns; column += 32) {
    params.to[index * params.columns + column] = column < params.head_dim ? from[column] : T{};
  }
}

// Views of a call's tensors with aligned rows. Without a stream to copy on it only plans the workspace.
template <class T>
class AlignedHeads {
 public:
  AlignedHeads(const AttentionShape& shape, cuda::WorkspacePlan& workspace, const cuda::Stream* stream)
      : shape_(shape), workspace_(workspace), stream_(stream) {}

  HeadsView queries(const HeadsView& view) { return aligned(view, shape_.num_heads, shape_.query_length); }
  HeadsView keys(const HeadsView& view) { return aligned(view, shape_.num_kv_heads, shape_.key_length); }

 private:
  HeadsView aligned(const HeadsView& view, int64_t num_heads, int64_t num_rows) {
    if (has_aligned_rows<T>(view, shape_.head_dim)) return view;
    const int64_t columns = padded_head_dim<T>(shape_.head_dim), count = shape_.batch * num_heads * num_rows;
    T* copy = workspace_.take<T>(count * columns);
    if (stream_ != nullptr) {
      const AlignRows<T> params = {view, copy, num_heads, num_rows, shape_.head_dim, columns, count};
      cuda::launch<attention_align_rows_kernel<T>>(cuda::launch_over(count, 4, 128, *stream_, "attention_align_rows"),
                                                   params);
    }
    return {copy, num_heads * num_rows * columns, num_rows * columns, columns};
  }

  const AttentionShape& shape_;
  cuda::WorkspacePlan& workspace_;
  const cuda::Stream* stream_;
};

}  // namespace tokcore::attention
