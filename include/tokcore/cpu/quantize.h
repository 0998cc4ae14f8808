// Quantization of rows of fp32 numbers by the rules of common/quantization.h, and the packing of codes.
//
// The results are the same bits at every instruction-set level. Sources that include this file are compiled with
// -ffp-contract=off: a multiplication joined with an addition would round once where the rules say twice.
#pragma once

#include <cmath>

#include "tokcore/common/quantization.h"
#include "tokcore/cpu/vec.h"

namespace tokcore::cpu::TOKCORE_ISA {

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

// ---- before quantization -------------------------------------------------------------------------------------------

// y = H (s * x) / sqrt(size) in place: the butterflies of a fast Walsh-Hadamard transform. size is a power of two.
inline void hadamard(float* x, int64_t size) {
  for (int64_t half = 1; half < size; half *= 2) {
    for (int64_t block = 0; block < size; block += 2 * half) {
      float* low = x + block;
      float* high = low + half;
      for (int64_t i = 0; i < half; ++i) {
        const float sum = low[i] + high[i];
        const float difference = low[i] - high[i];
        low[i] = sum;
        high[i] = difference;
      }
    }
  }
  const float norm = static_cast<float>(1.0 / std::sqrt(static_cast<double>(size)));
  for (int64_t i = 0; i < size; ++i) x[i] = x[i] * norm;
}
inline void flip_signs(float* x, int64_t size) {
  for (int64_t i = 0; i < size; ++i) x[i] = rotation_flips(i) ? -x[i] : x[i];
}
inline void rotate(float* x, int64_t size) {
  flip_signs(x, size);
  hadamard(x, size);
}
inline void rotate_back(float* x, int64_t size) {
  hadamard(x, size);
  flip_signs(x, size);
}

template <class T>
void load_row(const T* from, int64_t size, float* to) {
  int64_t i = 0;
  for (; i + Vec::kLanes <= size; i += Vec::kLanes) Vec::load(from + i).store(to + i);
  for (; i < size; ++i) to[i] = to_float(from[i]);
}
template <class T>
void store_row(const float* from, int64_t size, T* to) {
  int64_t i = 0;
  for (; i + Vec::kLanes <= size; i += Vec::kLanes) Vec::load(from + i).store(to + i);
  for (; i < size; ++i) from_float(from[i], to + i);
}

// One row made ready: divided by the scale of its channels (or null) and rotated.
template <class T>
void prepare_row(const T* from, int64_t size, const float* channel_scale, bool rotates, float* to) {
  load_row(from, size, to);
  if (channel_scale != nullptr) {
    for (int64_t i = 0; i < size; ++i) to[i] = to[i] / channel_scale[i];
  }
  if (rotates) rotate(to, size);
}
// The inverse, in place.
inline void restore_row(float* x, int64_t size, const float* channel_scale, bool rotates) {
  if (rotates) rotate_back(x, size);
  if (channel_scale != nullptr) {
    for (int64_t i = 0; i < size; ++i) x[i] = x[i] * channel_scale[i];
  }
}

// ---- scale and zero ------------------------------------------------------------------------------------------------

struct GroupScale {
  BFloat16 scale, zero;
  float scale_value, zero_value;  // as fp32; the symmetric zero is -middle * scale
};

// From the least and greatest of a group; `finite` says that all of it is.
inline GroupScale make_scale(float least, float greatest, bool finite, const QuantScheme& scheme) {
  GroupScale result;
  float zero = 0.0f, range;
  if (scheme.symmetric) {
    range = std::fmax(-least, greatest) / static_cast<float>(middle_code(scheme.bits) - 1);
  } else {
    result.zero.bits = bfloat16_not_above(bits_of(least + 0.0f));  // + 0: no negative zero
    zero = to_float(result.zero);
    range = (greatest - zero) / static_cast<float>(top_code(scheme.bits));
  }
  result.scale.bits = bfloat16_not_below(bits_of(range + 0.0f));
  const float scale = to_float(result.scale);
  if (!finite || !std::isfinite(scale) || !std::isfinite(zero)) {
    result.scale.bits = result.zero.bits = 0x7fc0;
    if (scheme.symmetric) result.zero.bits = 0;
  } else if (scheme.symmetric) {
    result.zero.bits = 0;
  }
  result.scale_value = to_float(result.scale);
  result.zero_value = to_float(result.zero);
  return result;
}

// Codes of numbers that share a scale and a zero, or that have one each (step 1).
inline void make_codes(const float* x, int64_t count, const float* scales, const float* zeros, int64_t step,
                       const QuantScheme& scheme, uint8_t* codes) {
  const float middle = scheme.symmetric ? static_cast<float>(middle_code(scheme.bits)) : 0.0f;
  const float low = scheme.symmetric ? 1.0f : 0.0f;
  const float high = static_cast<float>(top_code(scheme.bits));
  for (int64_t i = 0; i < count; ++i) {
    const float scale = scales[i * step];
    const float distance = x[i] - zeros[i * step];
    const float quotient = (scale > 0.0f ? distance : 0.0f) / (scale > 0.0f ? scale : 1.0f);
    // Adding 3 * 2^22 rounds to the nearest integer, ties to even, and leaves it in the low bits.
    float code = quotient + middle;
    code = code < low ? low : code > high ? high : code;
    code = code == code && scale == scale ? code : 0.0f;
    codes[i] = static_cast<uint8_t>(bits_of(code + 12582912.0f));
  }
}

// ---- groups --------------------------------------------------------------------------------------------------------

struct Extremes {
  float least, greatest;
  bool finite;
};

inline Extremes extremes_of(const float* x, int64_t count) {
  float least = x[0], greatest = x[0], poison = 0.0f;
  int64_t i = 0;
  if (count >= Vec::kLanes) {
    Vec low = Vec::load(x), high = low, bad(0.0f);
    for (; i + Vec::kLanes <= count; i += Vec::kLanes) {
      const Vec value = Vec::load(x + i);
      low = min(low, value);
      high = max(high, value);
      bad = bad + value * Vec(0.0f);  // NaN from NaN and from infinities
    }
    float lows[Vec::kLanes], highs[Vec::kLanes], bads[Vec::kLanes];
    low.store(lows);
    high.store(highs);
    bad.store(bads);
    for (int lane = 0; lane < Vec::kLanes; ++lane) {
      least = lows[lane] < least ? lows[lane] : least;
      greatest = highs[lane] > greatest ? highs[lane] : greatest;
      poison += bads[lane];
    }
  }
  for (; i < count; ++i) {
    least = x[i] < least ? x[i] : least;
    greatest = x[i] > greatest ? x[i] : greatest;
    poison += x[i] * 0.0f;
  }
  return {least, greatest, poison == 0.0f};
}

// Quantizes x [tokens][size] into codes [tokens][size], a byte each. Axis token: scale and zero [tokens][size / group];
// axis channel: [tokens / group][size]. zero is null for a symmetric scheme. `row` is scratch of 4 * size floats.
inline void quantize_rows(const float* x, int64_t tokens, int64_t size, const QuantScheme& scheme, uint8_t* codes,
                          BFloat16* scale, BFloat16* zero, float* row) {
  float* scales = row;
  float* zeros = row + size;
  auto keep = [&](int64_t index, const GroupScale& found) {
    scale[index] = found.scale;
    if (zero != nullptr) zero[index] = found.zero;
  };
  if (scheme.axis == QuantAxis::kToken) {
    for (int64_t group = 0; group < tokens * (size / scheme.group); ++group) {
      const float* from = x + group * scheme.group;
      const Extremes extremes = extremes_of(from, scheme.group);
      const GroupScale found = make_scale(extremes.least, extremes.greatest, extremes.finite, scheme);
      keep(group, found);
      make_codes(from, scheme.group, &found.scale_value, &found.zero_value, 0, scheme, codes + group * scheme.group);
    }
    return;
  }
  float* least = row + 2 * size;
  float* greatest = row + 3 * size;
  for (int64_t first = 0; first < tokens; first += scheme.group) {
    const float* from = x + first * size;
    for (int64_t i = 0; i < size; ++i) least[i] = greatest[i] = from[i];
    for (int64_t i = 0; i < size; ++i) scales[i] = 0.0f;
    for (int64_t token = 0; token < scheme.group; ++token) {
      for (int64_t i = 0; i < size; ++i) {
        const float value = from[token * size + i];
        least[i] = value < least[i] ? value : least[i];
        greatest[i] = value > greatest[i] ? value : greatest[i];
        scales[i] = scales[i] + value * 0.0f;
      }
    }
    for (int64_t i = 0; i < size; ++i) {
      const GroupScale found = make_scale(least[i], greatest[i], scales[i] == 0.0f, scheme);
      keep(first / scheme.group * size + i, found);
      scales[i] = found.scale_value;
      zeros[i] = found.zero_value;
    }
    for (int64_t token = first; token < first + scheme.group; ++token) {
      make_codes(x + token * size, size, scales, zeros, 1, scheme, codes + token * size);
    }
  }
}

// The inverse: x^ = code * scale + zero.
inline void dequantize_rows(const uint8_t* codes, int64_t tokens, int64_t size, const QuantScheme& scheme,
                            const BFloat16* scale, const BFloat16* zero, float* x) {
  const float middle = static_cast<float>(middle_code(scheme.bits));
  for (int64_t token = 0; token < tokens; ++token) {
    const uint8_t* from = codes + token * size;
    float* to = x + token * size;
    if (scheme.axis == QuantAxis::kChannel) {
      const int64_t first = token / scheme.group * size;
      for (int64_t i = 0; i < size; ++i) {
        const float factor = to_float(scale[first + i]);
        const float offset = zero == nullptr ? 0.0f : to_float(zero[first + i]);
        to[i] = (static_cast<float>(from[i]) - (zero == nullptr ? middle : 0.0f)) * factor + offset;
      }
      continue;
    }
    for (int64_t group = 0; group < size / scheme.group; ++group) {
      const int64_t index = token * (size / scheme.group) + group;
      const float factor = to_float(scale[index]), offset = zero == nullptr ? 0.0f : to_float(zero[index]);
      const float origin = zero == nullptr ? middle : 0.0f;
      for (int64_t i = group * scheme.group; i < (group + 1) * scheme.group; ++i) {
        to[i] = (static_cast<float>(from[i]) - origin) * factor + offset;
      }
    }
  }
}

// ---- packing -------------------------------------------------------------------------------------------------------

inline void pack_row(const uint8_t* codes, int64_t size, int bits, uint8_t* packed) {
  const int64_t plane = size / codes_per_byte(bits);
  for (int64_t i = 0; i < plane; ++i) packed[i] = codes[i];
  for (int64_t shift = bits, first = plane; shift < 8; shift += bits, first += plane) {
    for (int64_t i = 0; i < plane; ++i) packed[i] = static_cast<uint8_t>(packed[i] | codes[first + i] << shift);
  }
}
inline void unpack_row(const uint8_t* packed, int64_t size, int bits, uint8_t* codes) {
  const int64_t plane = size / codes_per_byte(bits);
  for (int64_t shift = 0, first = 0; shift < 8; shift += bits, first += plane) {
    for (int64_t i = 0; i < plane; ++i) codes[first + i] = static_cast<uint8_t>(packed[i] >> shift & top_code(bits));
  }
}

}  // namespace tokcore::cpu::TOKCORE_ISA
