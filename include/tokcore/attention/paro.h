// PARO attention: self-attention over tokens of a grid [F, H, W] that are reordered per head so that kept elements come
// in blocks, with the operands of both products quantized. Two ops: paro_prepare makes the operands, paro_attention
// attends over them and writes its rows back in the order of the tokens. Every backend follows this file bit for bit up
// to the codes and scales; sums behind them agree within rounding.
//
// Letters: B batch, H query heads, Hkv key heads (H a multiple), N tokens, D head size;
//   P  = N rounded up to 64        rows of codes, those past N are 0
//   Dq = D rounded up to 64        channels of query and key codes, those past D are 0
//   Dv = D rounded up to 32        channels of 8- and 4-bit value codes, those past D are 0
//
// Order. The tokens are `before` of text, then F*H*W of the grid, row-major, then text again. Position p of the new
// order holds token p for text; the positions of the grid walk it with the axes in the order of the key head's code.
//
// Prologue, every step one correctly rounded fp32 operation (no fused multiply-add):
//   rotation    y0 = x0 cos - x1 sin, y1 = x1 cos + x0 sin for each pair of channels (q and k)
//   mean        of the rotated keys: 64 tokens at a time (in the order of the tokens, text included) are added up in
//   fp32,
//               starting from 0 and ascending; these sums in fp64, ascending; their sum / N is rounded to fp32
//   smoothing   k - mean (softmax does not see the difference; lse gets back scale * q.mean)
//   scale       most = max |x| over the group; scale = most / top, inverse = top / most, both fp32, for top = 127
//   (int8),
//               7 (int4), 448 (fp8). most < 2^-100: scale = inverse = 0. A NaN or inf: scale = NaN, codes 0.
//               groups: q a token, k 64 positions, v a channel of all tokens
//   codes       x * inverse, rounded to the nearest integer (or fp8 e4m3), ties to even; bf16: x itself, rounded so
//
// Attention. s = scale * q.k of the codes, exact in int32; weights relative to the maximum m of a query over some span
// of kept keys (of the backend's choosing, several spans are joined by their maxima in fp32). 8- and 4-bit values: p =
// round(255 e^(s - m)) in u8, sums p.v exact in int32, the sum of weights is that of the rounded p. fp8 and bf16
// values: p rounded to bf16 or finer.
#pragma once

#include <cstdint>

#include "tokcore/attention/block_sparse_attention.h"

namespace tokcore {

enum class ParoFormat : int8_t { kInt8, kInt4, kFp8, kBf16 };

inline constexpr int64_t kParoGroup = 64;  // positions of a key group and of a block of value codes
inline constexpr float kParoLeastMost = 0x1p-100f;

constexpr float top_of(ParoFormat format) {
  return format == ParoFormat::kInt8 ? 127.0f : format == ParoFormat::kInt4 ? 7.0f : 448.0f;
}
constexpr bool is_quantized(ParoFormat format) { return format != ParoFormat::kBf16; }

struct ParoShape {
  int64_t batch;         // B
  int64_t num_heads;     // H
  int64_t num_kv_heads;  // Hkv
  int64_t length;        // N
  int64_t head_dim;      // D

  constexpr int64_t group_size() const { return num_heads / num_kv_heads; }
  constexpr int64_t padded_length() const { return round_up(length, kParoGroup); }  // P
  constexpr int64_t code_dim() const { return round_up(head_dim, 64); }             // Dq
  constexpr int64_t value_dim() const { return round_up(head_dim, 32); }            // Dv
  // Bytes of a row of query or key codes.
  constexpr int64_t row_bytes(ParoFormat format) const {
    return format == ParoFormat::kBf16 ? code_dim() * 2 : format == ParoFormat::kInt4 ? code_dim() / 2 : code_dim();
  }
  // Bytes of the value codes of 64 positions.
  constexpr int64_t value_block_bytes(ParoFormat format) const {
    return format == ParoFormat::kBf16   ? kParoGroup * code_dim() * 2
           : format == ParoFormat::kInt4 ? value_dim() * kParoGroup / 2
                                         : value_dim() * kParoGroup;
  }
};

// The six orders of the axes: 0 FHW, 1 FWH, 2 HWF, 3 HFW, 4 WHF, 5 WFH, the first outermost.
inline constexpr int kParoOrders = 6;
inline constexpr int8_t kParoAxes[kParoOrders][3] = {{0, 1, 2}, {0, 2, 1}, {1, 2, 0}, {1, 0, 2}, {2, 1, 0}, {2, 0, 1}};

struct ParoGrid {
  int64_t extent[3];  // F, H, W
  int64_t before;     // text tokens before the grid
  int64_t after;      // and after it

  int64_t volume() const { return extent[0] * extent[1] * extent[2]; }
  bool is_text(int64_t position) const { return position < before || position >= before + volume(); }

  // The token at a position of the order `code`.
  int64_t token(int code, int64_t position) const {
    if (is_text(position)) return position;
    const int64_t strides[3] = {extent[1] * extent[2], extent[2], 1};
    const int8_t* axes = kParoAxes[code];
    const int64_t inner = extent[axes[2]], middle = extent[axes[1]], index = position - before;
    return before + index / inner / middle * strides[axes[0]] + index / inner % middle * strides[axes[1]] +
           index % inner * strides[axes[2]];
  }
};

// Tables of the rotation, [rows][width] fp32 with rows = N or, without the text, F*H*W.
struct ParoRotation {
  const float* cos;  // null: none
  const float* sin;
  int64_t width;  // D, a factor for every channel, or D/2, one for every pair
  int64_t first;  // token of row 0
  int64_t rows;
  bool interleaved;  // pairs are channels (2i, 2i + 1), otherwise (i, i + D/2)
};

struct ParoPrepareParams {
  DType dtype;  // of q, k, v
  ParoShape shape;
  HeadsView q;                 // [B, H, N, D]
  HeadsView k;                 // [B, Hkv, N, D]
  HeadsView v;                 // [B, Hkv, N, D]
  const int64_t* permutation;  // [Hkv] codes of the orders; the query heads of a key head share its code
  ParoGrid grid;
  ParoRotation rotation;
  ParoFormat qk, pv;
  void* q_codes;   // [B, H, P, Dq] int8 or bf16; int4 [B, H, P, Dq/2]: byte j holds channels j (low half) and j + Dq/2
  float* q_scale;  // [B, H, P]; null with bf16
  void* k_codes;   // [B, Hkv, P, Dq] likewise
  float* k_scale;  // [B, Hkv, P/64]; null with bf16
  void* v_codes;   // bf16 [B, Hkv, P, Dq]; else [B, Hkv, P/64, Dv, 64] bytes (int8, fp8 e4m3) of 64 positions; int4
                   // [B, Hkv, P/64, Dv, 32]: byte j holds positions j (low half) and j + 32
  float* v_scale;  // [B, Hkv, D]; null with bf16
  float* k_mean;   // [B, Hkv, D] or null: keys are not smoothed
  float* mean_score;  // [B, H, N] q.mean by position, or null
};

struct ParoAttentionParams {
  DType dtype;  // of out
  ParoShape shape;
  ParoFormat qk, pv;
  const void* q_codes;  // as above
  const float* q_scale;
  const void* k_codes;
  const float* k_scale;
  const void* v_codes;
  const float* v_scale;
  const float* mean_score;     // [B, H, N] or null
  const int64_t* permutation;  // [Hkv]
  ParoGrid grid;
  BlockMaskView mask;  // by position; rows and columns of blocks that hold text count as kept
  float scale;         // > 0
  void* out;           // [B, H, N, D] contiguous, by token
  float* lse;          // [B, H, N] by token, or null
};

void run_paro_prepare_cpu(const ParoPrepareParams& params, const cpu::Threads& threads);
void run_paro_attention_cpu(const ParoAttentionParams& params, const cpu::Threads& threads);

}  // namespace tokcore
