// Test kernel: one warpgroup multiplies two tiles through CuTe's own TiledMMA. Layouts of shared memory, matrix
// descriptors and register layouts are CuTe's, so that the emulation is checked against an independent description.
#pragma once

#include <cute/tensor.hpp>

#include <cutlass/arch/barrier.h>
#include <cute/atom/mma_atom.hpp>

#include <cstdint>
#include <type_traits>

#include "tokcore/cuda/kernel.h"
#include "tokcore/cuda/launch.h"

namespace tokcore::simt::hopper_wgmma {

namespace gmma = cute::SM90::GMMA;
using gmma::Major;

constexpr int kM = 128;  // two products of 64 rows
constexpr int kBytesOfK = 128;

// How an operand lies in shared memory: the span of the swizzle in bytes, 0 for none.
template <class T, Major kMajor, int kSpan>
auto layout_atom() {
  if constexpr (kSpan == 128)
    return gmma::Layout_SW128_Atom<T, kMajor>{};
  else if constexpr (kSpan == 64)
    return gmma::Layout_SW64_Atom<T, kMajor>{};
  else if constexpr (kSpan == 32)
    return gmma::Layout_SW32_Atom<T, kMajor>{};
  else
    return gmma::Layout_INTER_Atom<T, kMajor>{};
}

// c [128, N] = a [128, K] b [N, K]^T, row-major
template <class Instruction_, Major kMajorA, int kSpanA, Major kMajorB, int kSpanB>
struct Case {
  using Instruction = Instruction_;
  using Traits = cute::MMA_Traits<Instruction>;
  using A = typename Traits::ValTypeA;
  using B = typename Traits::ValTypeB;
  using C = typename Traits::ValTypeC;
  static constexpr bool kAFromRegisters = std::extent_v<typename Instruction::ARegisters> == 4;
  static constexpr int kN = cute::size<1>(typename Traits::Shape_MNK{});
  static constexpr int kK = kBytesOfK * 8 / cute::sizeof_bits_v<A>;
  using LayoutA =
      decltype(cute::tile_to_shape(layout_atom<A, kMajorA, kSpanA>(), cute::Shape<cute::Int<kM>, cute::Int<kK>>{}));
  using LayoutB =
      decltype(cute::tile_to_shape(layout_atom<B, kMajorB, kSpanB>(), cute::Shape<cute::Int<kN>, cute::Int<kK>>{}));
  static constexpr int kBytesOfA = kM * kBytesOfK;
  static constexpr int kBytesOfB = kN * kBytesOfK;
};

template <class Case>
__global__ void kernel(const typename Case::A* a, const typename Case::B* b, typename Case::C* c) {
  using namespace cute;
  TOKCORE_SHARED_MEMORY(shared);
  const int thread = static_cast<int>(threadIdx.x);
  Tensor shared_a = make_tensor(make_smem_ptr(reinterpret_cast<typename Case::A*>(shared)), typename Case::LayoutA{});
  Tensor shared_b = make_tensor(make_smem_ptr(reinterpret_cast<typename Case::B*>(shared + Case::kBytesOfA)),
                                typename Case::LayoutB{});
  for (int i = thread; i < kM * Case::kK; i += 128) shared_a(i / Case::kK, i % Case::kK) = a[i];
  for (int i = thread; i < Case::kN * Case::kK; i += 128) shared_b(i / Case::kK, i % Case::kK) = b[i];
  cutlass::arch::fence_view_async_shared();
  __syncthreads();

  auto mma = make_tiled_mma(typename Case::Instruction{});
  auto slice = mma.get_thread_slice(thread);
  Tensor part_b = slice.partition_B(shared_b);
  Tensor fragment_b = slice.make_fragment_B(part_b);
  Tensor sum = partition_fragment_C(mma, Shape<Int<kM>, Int<Case::kN>>{});
  const auto multiply = [&](auto const& fragment_a) {
    warpgroup_fence_operand(sum);
    warpgroup_arrive();
    mma.accumulate_ = gmma::ScaleOut::Zero;
    for (int k = 0; k < size<2>(fragment_b); ++k) {
      cute::gemm(mma, fragment_a(_, _, k), fragment_b(_, _, k), sum);
      mma.accumulate_ = gmma::ScaleOut::One;
    }
    warpgroup_commit_batch();
    warpgroup_wait<0>();
    warpgroup_fence_operand(sum);
  };
  Tensor part_a = slice.partition_A(shared_a);
  if constexpr (Case::kAFromRegisters) {
    Tensor fragment_a = make_fragment_like(part_a);
    copy(part_a, fragment_a);
    multiply(fragment_a);
  } else {
    multiply(slice.make_fragment_A(part_a));
  }
  Tensor global_c = make_tensor(make_gmem_ptr(c), Layout<Shape<Int<kM>, Int<Case::kN>>, Stride<Int<Case::kN>, _1>>{});
  copy(sum, slice.partition_C(global_c));
}

template <class Case>
void run(uintptr_t a, uintptr_t b, uintptr_t c) {
  cuda::launch<&kernel<Case>>(
      cuda::LaunchConfig{
          .grid = {1}, .threads = 128, .shared_bytes = Case::kBytesOfA + Case::kBytesOfB, .name = "wgmma"},
      reinterpret_cast<const typename Case::A*>(a), reinterpret_cast<const typename Case::B*>(b),
      reinterpret_cast<typename Case::C*>(c));
}

struct Named {
  const char* name;  // d, a, b types, n, then for each operand its major and the span of its swizzle, or "registers"
  void (*run)(uintptr_t a, uintptr_t b, uintptr_t c);
};

}  // namespace tokcore::simt::hopper_wgmma
