// Quantization by the rules of common/quantization.h, bit for bit as on the CPU: every step is one correctly rounded
// operation, so products and sums are spelled out where the compiler would fuse them.
//
// Rows are worked on by warps, in fp32 in shared memory.
#pragma once

#include <cmath>
#include <limits>

#include "tokcore/common/math.h"
#include "tokcore/common/quantization.h"
#include "tokcore/cuda/element.cuh"
#include "tokcore/cuda/reduce.cuh"

namespace tokcore::cuda {

// ---- rows ----------------------------------------------------------------------------------------------------------

// What the rotation of rows of `size` channels multiplies by in the end.
inline float rotation_norm(int64_t size) {
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(max(size, 1))));
}

// y = H x * norm in place, by a warp. size is a power of two.
TOKCORE_DEVICE void hadamard_row(float* row, int size, float norm, int lane) {
  for (int half = 1; half < size; half *= 2) {
    __syncwarp();
    for (int pair = lane; pair < size / 2; pair += 32) {
      float* low = row + (pair & ~(half - 1)) * 2 + (pair & (half - 1));
      const float a = low[0], b = low[half];
      low[0] = a + b;
      low[half] = a - b;
    }
  }
  __syncwarp();
  for (int i = lane; i < size; i += 32) row[i] = __fmul_rn(row[i], norm);
  __syncwarp();
}

// How rows are changed before they are quantized.
struct RowRules {
  const float* channel_scale;  // [D] or null
  bool rotates;
  float norm;  // rotation_norm(D)
};

TOKCORE_DEVICE bool is_finite(float x) { return fabsf(x) < __uint_as_float(0x7f800000u); }

// One row made ready by a warp. A channel scale that is not finite and positive makes NaN: it cannot be reported.
template <class Load>
TOKCORE_DEVICE void prepare_row(Load&& load, int size, const RowRules& rules, float* row, int lane) {
  __syncwarp();
  for (int i = lane; i < size; i += 32) {
    float value = load(i);
    if (rules.channel_scale != nullptr) {
      const float scale = rules.channel_scale[i];
      value = scale > 0.0f && is_finite(scale) ? __fdiv_rn(value, scale) : __uint_as_float(0x7fffffffu);
    }
    row[i] = rules.rotates && rotation_flips(i) ? -value : value;
  }
  __syncwarp();
  if (rules.rotates) hadamard_row(row, size, rules.norm, lane);
}
// The inverse, in place.
TOKCORE_DEVICE void restore_row(float* row, int size, const RowRules& rules, int lane) {
  __syncwarp();
  if (rules.rotates) hadamard_row(row, size, rules.norm, lane);
  for (int i = lane; i < size; i += 32) {
    float value = rules.rotates && rotation_flips(i) ? -row[i] : row[i];
    if (rules.channel_scale != nullptr) value = __fmul_rn(value, rules.channel_scale[i]);
    row[i] = value;
  }
  __syncwarp();
}

// ---- scale, zero, codes --------------------------------------------------------------------------------------------

// Of the numbers of a group so far.
struct Extremes {
  float least = std::numeric_limits<float>::infinity();
  float greatest = -std::numeric_limits<float>::infinity();
  bool finite = true;

  TOKCORE_DEVICE void take(float value) {
    least = fminf(least, value);
    greatest = fmaxf(greatest, value);
    finite = finite && is_finite(value);
  }
  // Over all lanes; every lane gets the result.
  TOKCORE_DEVICE void join_warp() {
    for (int step = 1; step < 32; step *= 2) {
      least = fminf(least, __shfl_xor_sync(kAllLanes, least, step));
      greatest = fmaxf(greatest, __shfl_xor_sync(kAllLanes, greatest, step));
    }
    finite = __all_sync(kAllLanes, finite) != 0;
  }
};

struct GroupScale {
  BFloat16 scale, zero;  // zero is 0 of a symmetric scheme
};

TOKCORE_DEVICE GroupScale make_scale(const Extremes& of, const QuantScheme& scheme) {
  GroupScale result = {};
  float zero = 0.0f, range;
  if (scheme.symmetric) {
    range = __fdiv_rn(fmaxf(-of.least, of.greatest), static_cast<float>(middle_code(scheme.bits) - 1));
  } else {
    result.zero.bits = bfloat16_not_above(__float_as_uint(__fadd_rn(of.least, 0.0f)));  // + 0: no negative zero
    zero = to_float(result.zero);
    range = __fdiv_rn(__fsub_rn(of.greatest, zero), static_cast<float>(top_code(scheme.bits)));
  }
  result.scale.bits = bfloat16_not_below(__float_as_uint(__fadd_rn(range, 0.0f)));
  if (!of.finite || !is_finite(to_float(result.scale)) || !is_finite(zero)) {
    result.scale.bits = 0x7fc0;
    result.zero.bits = scheme.symmetric ? 0 : 0x7fc0;
  }
  return result;
}

TOKCORE_DEVICE uint32_t make_code(float x, float scale, float zero, const QuantScheme& scheme) {
  const float middle = scheme.symmetric ? static_cast<float>(middle_code(scheme.bits)) : 0.0f;
  const float low = scheme.symmetric ? 1.0f : 0.0f;
  const float high = static_cast<float>(top_code(scheme.bits));
  const float distance = __fsub_rn(x, zero);
  const float quotient = scale > 0.0f ? __fdiv_rn(distance, scale) : 0.0f;
  // Adding 3 * 2^22 rounds to the nearest integer, ties to even, and leaves it in the low bits.
  float code = __fadd_rn(quotient, middle);
  code = code < low ? low : code > high ? high : code;
  code = code == code && scale == scale ? code : 0.0f;
  return __float_as_uint(__fadd_rn(code, 12582912.0f)) & 0xff;
}

// x^ of a code; `origin` is the middle code of a symmetric scheme, else 0.
TOKCORE_DEVICE float value_of_code(uint32_t code, float scale, float zero, float origin) {
  return __fadd_rn(__fmul_rn(__fsub_rn(static_cast<float>(code), origin), scale), zero);
}
TOKCORE_DEVICE float origin_of(const QuantScheme& scheme) {
  return scheme.symmetric ? static_cast<float>(middle_code(scheme.bits)) : 0.0f;
}

// ---- panels --------------------------------------------------------------------------------------------------------

// Shared memory of the block that quantizes a panel of rows.
struct PanelScratch {
  float* rows;     // [warps, D]
  float* low;      // [D] with axis channel: least numbers, then scales
  float* high;     // [D] greatest numbers, then zeros
  uint8_t* codes;  // as many rows of D codes as the caller keeps

  static constexpr int64_t bytes(int64_t warps, int64_t head_dim, int64_t code_rows) {
    return (warps + 2) * head_dim * 4 + code_rows * head_dim;
  }
  TOKCORE_DEVICE PanelScratch(unsigned char* shared, int warps, int head_dim)
      : rows(reinterpret_cast<float*>(shared)),
        low(rows + warps * head_dim),
        high(low + head_dim),
        codes(reinterpret_cast<uint8_t*>(high + head_dim)) {}
};

// Quantizes `tokens` rows by all warps of a block; with axis channel a multiple of the group.
//   prepare(token, row)            by a warp: a row as it is to be quantized, between barriers of the warp
//   keep_scale(row, column, scale) the scale of token `row`, group `column`, or of token group `row`, channel `column`
//   codes_of(token)                where D codes go, a byte each
//   after_row(token)               by a warp, once it has made a row's codes
// Ends with a barrier.
template <class Prepare, class KeepScale, class CodesOf, class AfterRow>
TOKCORE_DEVICE void quantize_panel(const PanelScratch& scratch, int tokens, int head_dim, const QuantScheme& scheme,
                                   Prepare&& prepare, KeepScale&& keep_scale, CodesOf&& codes_of,
                                   AfterRow&& after_row) {
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32, group = static_cast<int>(scheme.group);
  float* row = scratch.rows + warp * head_dim;
  if (scheme.axis == QuantAxis::kToken) {
    for (int token = warp; token < tokens; token += warps) {
      prepare(token, row);
      uint8_t* codes = codes_of(token);
      // Wide groups are a warp's work, narrow ones a lane's.
      const bool wide = group >= 32;
      const int step = wide ? 1 : 32;
      for (int column = wide ? 0 : lane; column < head_dim / group; column += step) {
        const int end = (column + 1) * group;
        Extremes extremes;
        for (int i = column * group + (wide ? lane : 0); i < end; i += wide ? 32 : 1) extremes.take(row[i]);
        if (wide) extremes.join_warp();
        const GroupScale made = make_scale(extremes, scheme);
        if (!wide || lane == 0) keep_scale(token, column, made);
        const float scale = to_float(made.scale), zero = to_float(made.zero);
        for (int i = column * group + (wide ? lane : 0); i < end; i += wide ? 32 : 1) {
          codes[i] = static_cast<uint8_t>(make_code(row[i], scale, zero, scheme));
        }
      }
      __syncwarp();
      after_row(token);
    }
    __syncthreads();
    return;
  }
  for (int first = 0; first < tokens; first += group) {
    for (int i = static_cast<int>(threadIdx.x); i < head_dim; i += static_cast<int>(blockDim.x)) {
      scratch.low[i] = Extremes().least;
      scratch.high[i] = Extremes().greatest;
    }
    for (int token = first; token < first + group; token += warps) {
      if (token + warp < first + group) prepare(token + warp, row);
      __syncthreads();
      const int present = first + group - token < warps ? first + group - token : warps;
      for (int i = static_cast<int>(threadIdx.x); i < head_dim; i += static_cast<int>(blockDim.x)) {
        Extremes extremes;
        extremes.least = scratch.low[i];
        extremes.greatest = scratch.high[i];
        extremes.finite = extremes.least == extremes.least;
        for (int other = 0; other < present; ++other) extremes.take(scratch.rows[other * head_dim + i]);
        scratch.low[i] = extremes.finite ? extremes.least : __uint_as_float(0x7fffffffu);
        scratch.high[i] = extremes.greatest;
      }
      __syncthreads();
    }
    for (int i = static_cast<int>(threadIdx.x); i < head_dim; i += static_cast<int>(blockDim.x)) {
      Extremes extremes;
      extremes.least = scratch.low[i];
      extremes.greatest = scratch.high[i];
      extremes.finite = extremes.least == extremes.least;
      const GroupScale made = make_scale(extremes, scheme);
      keep_scale(first / group, i, made);
      scratch.low[i] = to_float(made.scale);
      scratch.high[i] = to_float(made.zero);
    }
    __syncthreads();
    for (int token = first + warp; token < first + group; token += warps) {
      prepare(token, row);
      uint8_t* codes = codes_of(token);
      for (int i = lane; i < head_dim; i += 32) {
        codes[i] = static_cast<uint8_t>(make_code(row[i], scratch.low[i], scratch.high[i], scheme));
      }
      __syncwarp();
      after_row(token);
    }
    __syncthreads();
  }
}

// A row of codes, packed by a warp as place_in_row says.
TOKCORE_DEVICE void pack_row(const uint8_t* codes, int head_dim, int bits, uint8_t* packed, int lane) {
  const int plane = head_dim / codes_per_byte(bits);
  for (int i = lane; i < plane; i += 32) {
    uint32_t byte = 0;
    for (int shift = 0, from = i; shift < 8; shift += bits, from += plane) {
      byte |= static_cast<uint32_t>(codes[from]) << shift;
    }
    packed[i] = static_cast<uint8_t>(byte);
  }
}

}  // namespace tokcore::cuda
