// What a wgmma instruction computes.
#pragma once

#include <cstdint>

namespace tokcore::simt {

enum class WgmmaType : uint8_t { kF16, kBF16, kTF32, kE4M3, kE5M2, kS8, kU8, kF32, kS32 };

struct WgmmaOp {
  const char* name;  // CuTe's
  int n;             // m is 64, k is 32 bytes
  WgmmaType d, a, b;
  bool a_from_registers;
  bool a_is_mn_major, b_is_mn_major;
  bool a_is_negated, b_is_negated;
  bool saturates;
  bool operator==(const WgmmaOp&) const = default;
};

inline constexpr int kWgmmaRows = 16;      // of D that one warp computes
inline constexpr int kWgmmaBytesOfK = 32;  // of one row of A or B
inline constexpr int kWgmmaMaxN = 256;

constexpr int wgmma_bytes(WgmmaType type) {
  switch (type) {
    case WgmmaType::kF32:
    case WgmmaType::kS32:
    case WgmmaType::kTF32:
      return 4;
    case WgmmaType::kF16:
    case WgmmaType::kBF16:
      return 2;
    default:
      return 1;
  }
}

constexpr int wgmma_k(const WgmmaOp& op) { return kWgmmaBytesOfK / wgmma_bytes(op.a); }

// 32-bit registers of D that a thread holds.
constexpr int num_accumulators(const WgmmaOp& op) { return op.d == WgmmaType::kF16 ? op.n / 4 : op.n / 2; }

// Where a 32-bit register lies in the warp's 16 × n part of D; of f16, where its lower half lies.
struct WgmmaPlace {
  int row, column;
};
constexpr WgmmaPlace wgmma_place(const WgmmaOp& op, int lane, int index) {
  if (op.d == WgmmaType::kF16) return {lane / 4 + 8 * (index % 2), 8 * (index / 2) + 2 * (lane % 4)};
  return {lane / 4 + 8 * (index / 2 % 2), 8 * (index / 4) + 2 * (lane % 4) + index % 2};
}

}  // namespace tokcore::simt
