// Products of a warpgroup by wgmma: operands in shared memory, 128-byte swizzled as TMA leaves them, sums in registers.
#pragma once

#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

#include "tokcore/common/dtype.h"
#include "tokcore/cuda/operand_tile.cuh"

namespace tokcore::cuda {

// Rows of 128 bytes in groups of eight, the unit of the swizzle.
inline constexpr int kSwizzleRowBytes = 128;
inline constexpr int kSwizzleGroupBytes = 8 * kSwizzleRowBytes;

// A matrix descriptor for 128-byte swizzled shared memory. `group_stride` bytes lie between groups of eight rows of
// memory, `atom_stride` bytes between stretches of 64 elements along the contiguous index (used where that index is not
// k).
TOKCORE_DEVICE uint64_t matrix_descriptor(const unsigned char* shared, int group_stride, int atom_stride) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  const uint64_t start = (cute::cast_smem_ptr_to_uint(shared) & 0x3ffff) >> 4;
  return start | static_cast<uint64_t>(atom_stride >> 4) << 16 | static_cast<uint64_t>(group_stride >> 4) << 32 |
         kSwizzle128;
}

constexpr cute::SM90::GMMA::Major gmma_major(Major major) {
  return major == Major::kK ? cute::SM90::GMMA::Major::K : cute::SM90::GMMA::Major::MN;
}

// The instruction of 64 x kN x 16 terms with fp32 sums.
template <DType kDType, Major kMajorA, Major kMajorB, int kN>
struct WgmmaInstruction;
template <Major kMajorA, Major kMajorB>
struct WgmmaInstruction<DType::kBFloat16, kMajorA, kMajorB, 128> {
  using Type = cute::SM90::GMMA::MMA_64x128x16_F32BF16BF16_SS<gmma_major(kMajorA), gmma_major(kMajorB)>;
};
template <Major kMajorA, Major kMajorB>
struct WgmmaInstruction<DType::kBFloat16, kMajorA, kMajorB, 256> {
  using Type = cute::SM90::GMMA::MMA_64x256x16_F32BF16BF16_SS<gmma_major(kMajorA), gmma_major(kMajorB)>;
};
template <Major kMajorA, Major kMajorB>
struct WgmmaInstruction<DType::kFloat16, kMajorA, kMajorB, 128> {
  using Type = cute::SM90::GMMA::MMA_64x128x16_F32F16F16_SS<gmma_major(kMajorA), gmma_major(kMajorB)>;
};
template <Major kMajorA, Major kMajorB>
struct WgmmaInstruction<DType::kFloat16, kMajorA, kMajorB, 256> {
  using Type = cute::SM90::GMMA::MMA_64x256x16_F32F16F16_SS<gmma_major(kMajorA), gmma_major(kMajorB)>;
};

// sums += A B with the sums at sum(0), sum(1), … in the instruction's order.
template <class Instruction, class Sum, size_t... kIndex>
TOKCORE_DEVICE void wgmma(uint64_t a, uint64_t b, Sum&& sum, std::index_sequence<kIndex...>) {
  Instruction::fma(a, b, sum(kIndex)..., cute::SM90::GMMA::ScaleOut::One);
}

}  // namespace tokcore::cuda
