// Products of a warpgroup by wgmma: operands in shared memory, 128-byte swizzled as TMA leaves them, sums in registers.
#pragma once

#include <cute/arch/mma_sm90_gmma.hpp>
#include <utility>

#include "tokcore/common/dtype.h"
#include "tokcore/cuda/operand_tile.cuh"
#include "tokcore/cuda/strip_fragment.cuh"

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

// The same with its start moved on: inside shared memory the lower word never overflows into the upper one.
TOKCORE_DEVICE uint64_t moved_descriptor(uint64_t descriptor, int bytes) {
  const uint32_t low = static_cast<uint32_t>(descriptor) + static_cast<uint32_t>(bytes >> 4);
  return descriptor >> 32 << 32 | low;
}

constexpr cute::SM90::GMMA::Major gmma_major(Major major) {
  return major == Major::kK ? cute::SM90::GMMA::Major::K : cute::SM90::GMMA::Major::MN;
}

// The instruction of 64 x kN x 16 terms with fp32 sums, operand A from shared memory (Type) or, K-major, from registers
// (FromRegisters).
template <DType kDType, Major kMajorA, Major kMajorB, int kN>
struct WgmmaInstruction;
#define TOKCORE_WGMMA_INSTRUCTION(dtype, name, n)                                                         \
  template <Major kMajorA, Major kMajorB>                                                                 \
  struct WgmmaInstruction<dtype, kMajorA, kMajorB, n> {                                                   \
    using Type = cute::SM90::GMMA::MMA_64x##n##x16_##name##_SS<gmma_major(kMajorA), gmma_major(kMajorB)>; \
    using FromRegisters =                                                                                 \
        cute::SM90::GMMA::MMA_64x##n##x16_##name##_RS<cute::SM90::GMMA::Major::K, gmma_major(kMajorB)>;   \
  };
#define TOKCORE_WGMMA_INSTRUCTIONS(n)                         \
  TOKCORE_WGMMA_INSTRUCTION(DType::kBFloat16, F32BF16BF16, n) \
  TOKCORE_WGMMA_INSTRUCTION(DType::kFloat16, F32F16F16, n)
TOKCORE_WGMMA_INSTRUCTIONS(64)
TOKCORE_WGMMA_INSTRUCTIONS(128)
TOKCORE_WGMMA_INSTRUCTIONS(256)
#undef TOKCORE_WGMMA_INSTRUCTIONS
#undef TOKCORE_WGMMA_INSTRUCTION

// sums += A B, or sums = A B with ScaleOut::Zero, with the sums at sum(0), sum(1), … in the instruction's order.
using cute::SM90::GMMA::ScaleOut;
template <class Instruction, class Sum, size_t... kIndex>
TOKCORE_DEVICE void wgmma(uint64_t a, uint64_t b, Sum&& sum, std::index_sequence<kIndex...>,
                          ScaleOut scale = ScaleOut::One) {
  Instruction::fma(a, b, sum(kIndex)..., scale);
}
template <class Instruction, class Sum, size_t... kIndex>
TOKCORE_DEVICE void wgmma(const FragmentA& a, uint64_t b, Sum&& sum, std::index_sequence<kIndex...>,
                          ScaleOut scale = ScaleOut::One) {
  Instruction::fma(a.x[0], a.x[1], a.x[2], a.x[3], b, sum(kIndex)..., scale);
}

// The same for a warp's strip of the 64 rows. A: a descriptor or a fragment.
template <class Instruction, class A, int kColumns>
TOKCORE_DEVICE void wgmma(const A& a, uint64_t b, StripFragment<1, kColumns>& sums, ScaleOut scale = ScaleOut::One) {
  wgmma<Instruction>(
      a, b, [&](size_t index) -> float& { return sums.values[0][index / 4][index % 4]; },
      std::make_index_sequence<kColumns / 2>(), scale);
}

// Nothing that the compiler does with the sums of a warpgroup passes this point.
template <int kStrips, int kColumns>
TOKCORE_DEVICE void fence_sums(StripFragment<kStrips, kColumns>& sums) {
  sums.for_each([](float& value, int, int, int) { cute::warpgroup_fence_operand(value); });
}

// Holds what follows back until `value`, which is never below 0, has been computed. ptxas moves a wait for products up
// before the very work that was to go on beside them; a trap it cannot move anything across.
TOKCORE_DEVICE void settle(float value) {
#ifdef __CUDA_ARCH__
  asm volatile("{ .reg .pred p; setp.lt.f32 p, %0, 0f00000000; @p trap; }" ::"f"(value) : "memory");
#else
  static_cast<void>(value);
#endif
}

}  // namespace tokcore::cuda
