// Uniform quantization of keys and values: what the numbers mean and where the codes lie. Every backend follows this
// file bit for bit.
//
// A group of numbers x gets one scale and, unless symmetric, one zero, both bfloat16, and codes c of `bits` bits:
//
//   x^ = c * scale + zero          zero = the group's minimum rounded down, scale = (max - zero) / top_code rounded up
//   x^ = (c - middle) * scale      symmetric: scale = max |x| / (middle - 1) rounded up
//
// c is the nearest integer (ties to even) within its range, so that |x - x^| <= scale / 2 plus fp32 rounding. A group
// of equal numbers may have scale 0 and codes 0. A group with a NaN or an infinity, or whose scale or zero overflows,
// has scale NaN and codes 0. Every step is one correctly rounded fp32 operation: no fused multiply-add.
//
// Before that x may be divided by a scale per channel and rotated: y = H (s * x) / sqrt(D) with the Sylvester-Hadamard
// matrix H and fixed signs s. H is its own inverse up to the factor D.
#pragma once

#include <cstdint>

#include "tokcore/common/math.h"

namespace tokcore {

enum class QuantAxis : int8_t {
  kToken,    // a group is `group` neighbouring channels of one token
  kChannel,  // a group is one channel of `group` neighbouring tokens
};

struct QuantScheme {
  int bits = 8;  // 8, 4 or 2
  QuantAxis axis = QuantAxis::kToken;
  int64_t group = 0;  // channels (axis token) or tokens (axis channel)
  bool symmetric = false;
};

constexpr int top_code(int bits) { return (1 << bits) - 1; }
constexpr int middle_code(int bits) { return 1 << (bits - 1); }
// Codes in a byte; also the planes into which a row or a page is cut: plane i holds bits [i * bits, (i + 1) * bits).
constexpr int codes_per_byte(int bits) { return 8 / bits; }

// Where a code lies.
struct CodePlace {
  int64_t byte;
  int shift;
};

// A row of codes: [D * bits / 8] bytes. Byte j holds channels j, j + D/n, j + 2 D/n, … from its low bits up, n codes.
constexpr CodePlace place_in_row(int64_t channel, int64_t head_dim, int bits) {
  const int64_t plane = head_dim / codes_per_byte(bits);
  return {channel % plane, static_cast<int>(channel / plane) * bits};
}

// A page of keys: [page_size / 16][D / n / 4][16 tokens][4 channels] bytes, each holding n channels as in a row. A
// 64-byte line is a row of the second operand of an int8 matrix product that sums over channels: on CPU tiles as on
// tensor cores a 32-bit word holds four neighbouring channels of one token.
constexpr CodePlace place_in_key_page(int64_t token, int64_t channel, int64_t head_dim, int bits) {
  const int64_t plane = head_dim / codes_per_byte(bits);
  const int64_t within = channel % plane;
  const int64_t byte = ((token / 16 * (plane / 4) + within / 4) * 16 + token % 16) * 4 + within % 4;
  return {byte, static_cast<int>(channel / plane) * bits};
}

// A page of values: [D / 16][page_size / n / 4][16 channels][4 tokens] bytes, each holding n tokens: token t, t +
// page_size/n, … The same for a product that sums over tokens.
constexpr CodePlace place_in_value_page(int64_t token, int64_t channel, int64_t page_size, int bits) {
  const int64_t plane = page_size / codes_per_byte(bits);
  const int64_t within = token % plane;
  const int64_t byte = ((channel / 16 * (plane / 4) + within / 4) * 16 + channel % 16) * 4 + within % 4;
  return {byte, static_cast<int>(token / plane) * bits};
}

constexpr int64_t code_bytes(int64_t count, int bits) { return count * bits / 8; }

// bfloat16 neighbours of a fp32 number given by its bits: the nearest one not below, and not above.
constexpr uint16_t bfloat16_not_below(uint32_t bits) {
  return static_cast<uint16_t>(((bits >> 31) != 0 ? bits : bits + 0xffff) >> 16);
}
constexpr uint16_t bfloat16_not_above(uint32_t bits) {
  return static_cast<uint16_t>(((bits >> 31) != 0 ? bits + 0xffff : bits) >> 16);
}

// Whether the rotation changes the sign of a channel: the low bit of a mix of its index.
constexpr bool rotation_flips(int64_t channel) {
  uint64_t x = (static_cast<uint64_t>(channel) + 1) * 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return ((x ^ (x >> 31)) & 1) != 0;
}

constexpr bool is_power_of_two(int64_t value) { return value > 0 && (value & (value - 1)) == 0; }

}  // namespace tokcore
