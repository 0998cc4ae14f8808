// What is done once before paro_attention's products: 4-bit codes become bytes, fp8 codes bfloat16, for which there are
// products on every GPU, and blocks that hold text are kept.
#pragma once

#include "attention/paro_attention_task_cuda.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/workspace.h"

namespace tokcore::attention {

inline constexpr int kWidenThreads = 256;

// Lines of `words` words of 4-bit codes: byte j holds code j (low half) and code 4 words + j.
struct WidenNibbles {
  const uint32_t* from;  // [lines, words]
  uint32_t* to;          // [lines, 2 words] codes as bytes
  int64_t count;         // words of all lines
  int words;
};

TOKCORE_DEVICE uint32_t signed_bytes(uint32_t nibbles) {
  return nibbles | (nibbles & 0x08080808u) * 30;  // bits 4 to 7 of a byte become those of its bit 3
}

__global__ void __launch_bounds__(kWidenThreads) paro_widen_nibbles_kernel(const WidenNibbles work) {
  const int64_t index = int64_t{blockIdx.x} * kWidenThreads + threadIdx.x;
  if (index >= work.count) return;
  const int64_t line = index / work.words, word = index % work.words;
  const uint32_t packed = work.from[index];
  uint32_t* to = work.to + 2 * line * work.words + word;
  to[0] = signed_bytes(packed & 0x0f0f0f0fu);
  to[work.words] = signed_bytes(packed >> 4 & 0x0f0f0f0fu);
}

struct WidenFp8 {
  const uint8_t* from;  // [blocks, channels, 64] e4m3
  uint32_t* to;         // [blocks, 64, columns] bfloat16, two to a word; zeros from `channels` on
  int channels, columns;
};

// bfloat16 holds every e4m3 number.
TOKCORE_DEVICE uint32_t bf16_bits_of_e4m3(uint32_t code) {
  const uint32_t magnitude = code & 0x7fu;
  const uint32_t normal = (magnitude << 4) + (120u << 7);
  const uint32_t subnormal = __float_as_uint(static_cast<float>(magnitude) * 0x1p-9f) >> 16;
  return (magnitude >= 8 ? normal : subnormal) | (code & 0x80u) << 8;
}

// Grid: a block for each 64 positions.
__global__ void __launch_bounds__(kWidenThreads) paro_widen_fp8_kernel(const WidenFp8 work) {
  const int words = work.columns / 2;
  const uint8_t* from = work.from + int64_t{blockIdx.x} * work.channels * kParoGroup;
  uint32_t* to = work.to + int64_t{blockIdx.x} * kParoGroup * words;
  for (int i = static_cast<int>(threadIdx.x); i < kParoGroup * words; i += kWidenThreads) {
    const int position = i / words, channel = i % words * 2;
    uint32_t pair = 0;
    if (channel < work.channels) {
      const uint8_t* codes = from + channel * kParoGroup + position;
      pair = bf16_bits_of_e4m3(codes[0]) | bf16_bits_of_e4m3(codes[kParoGroup]) << 16;
    }
    to[i] = pair;
  }
}

struct KeepText {
  BlockMaskView mask;
  uint32_t* to;   // [batches, heads, rows, words]
  int64_t count;  // words of all of it
  int64_t heads, rows, words;
  int64_t length, before, end;  // text stands before token `before` and from `end` on

  TOKCORE_DEVICE bool holds_text(int64_t first, int64_t size) const {
    const int64_t last = min(first + size, length) - 1;
    return first < before || last >= end;
  }
};

__global__ void __launch_bounds__(kWidenThreads) paro_keep_text_kernel(const KeepText work) {
  const int64_t index = int64_t{blockIdx.x} * kWidenThreads + threadIdx.x;
  if (index >= work.count) return;
  const int64_t word = index % work.words, line = index / work.words, row = line % work.rows, head = line / work.rows;
  uint32_t bits = work.mask.row(head / work.heads, head % work.heads, row)[word];
  if (work.holds_text(row * work.mask.block_m, work.mask.block_m)) bits = ~0u;
  for (int64_t i = 0; i < 32; ++i) {
    const int64_t first = (word * 32 + i) * work.mask.block_n;
    if (first < work.length && work.holds_text(first, work.mask.block_n)) bits |= 1u << i;
  }
  work.to[index] = bits;  // bits past the last column mean nothing
}

// Codes in a form that has products; without a stream only the workspace is planned.
class WidenedOperands {
 public:
  WidenedOperands(ParoAttentionParams& params, cuda::WorkspacePlan& workspace, const cuda::Stream* stream)
      : params_(params), workspace_(workspace), stream_(stream) {}

  void widen() {
    const ParoShape& shape = params_.shape;
    const int64_t P = shape.padded_length(), pairs = shape.batch * shape.num_kv_heads;
    if (params_.qk == ParoFormat::kInt4) {
      params_.q_codes = bytes_of(params_.q_codes, shape.batch * shape.num_heads * P, shape.code_dim());
      params_.k_codes = bytes_of(params_.k_codes, pairs * P, shape.code_dim());
      params_.qk = ParoFormat::kInt8;
    }
    if (params_.pv == ParoFormat::kInt4) {
      params_.v_codes = bytes_of(params_.v_codes, pairs * (P / kParoGroup) * shape.value_dim(), kParoGroup);
      params_.pv = ParoFormat::kInt8;
    } else if (params_.pv == ParoFormat::kFp8) {
      params_.v_codes = numbers_of(params_.v_codes, pairs * (P / kParoGroup));
      params_.pv = ParoFormat::kBf16;
    }
  }

  // The mask with the blocks that hold text.
  BlockMaskView keep_text() {
    const ParoShape& shape = params_.shape;
    const ParoGrid& grid = params_.grid;
    BlockMaskView mask = params_.mask;
    if (grid.before + grid.after == 0) return mask;
    KeepText work = {mask};
    const int64_t batches = mask.stride_batch == 0 ? 1 : shape.batch;
    work.heads = mask.stride_head == 0 ? 1 : shape.num_heads;
    work.rows = ceil_div(shape.length, mask.block_m);
    work.words = ceil_div(ceil_div(shape.length, mask.block_n), 32);
    work.count = batches * work.heads * work.rows * work.words;
    work.length = shape.length;
    work.before = grid.before;
    work.end = grid.before + grid.volume();
    work.to = workspace_.take<uint32_t>(work.count);
    launch<paro_keep_text_kernel>(work.count, work, "paro_keep_text");
    mask.bits = work.to;
    mask.stride_row = work.words;
    mask.stride_head = work.heads == 1 ? 0 : work.rows * work.words;
    mask.stride_batch = batches == 1 ? 0 : work.heads * work.rows * work.words;
    return mask;
  }

 private:
  template <auto Kernel, class Work>
  void launch(int64_t items, const Work& work, const char* name) const {
    if (stream_ == nullptr) return;
    cuda::launch<Kernel>(cuda::launch_over(items, kWidenThreads, kWidenThreads, *stream_, name), work);
  }
  const void* bytes_of(const void* codes, int64_t lines, int64_t line) {
    const int words = static_cast<int>(line / 8);
    uint32_t* to = workspace_.take<uint32_t>(lines * words * 2);
    const WidenNibbles work = {static_cast<const uint32_t*>(codes), to, lines * words, words};
    launch<paro_widen_nibbles_kernel>(work.count, work, "paro_widen_nibbles");
    return to;
  }
  const void* numbers_of(const void* codes, int64_t blocks) {
    const int columns = static_cast<int>(params_.shape.code_dim());
    uint32_t* to = workspace_.take<uint32_t>(blocks * kParoGroup * columns / 2);
    const WidenFp8 work = {static_cast<const uint8_t*>(codes), to, static_cast<int>(params_.shape.value_dim()),
                           columns};
    launch<paro_widen_fp8_kernel>(blocks * kWidenThreads, work, "paro_widen_fp8");
    return to;
  }

  ParoAttentionParams& params_;
  cuda::WorkspacePlan& workspace_;
  const cuda::Stream* stream_;
};

}  // namespace tokcore::attention
