#include "simt/mma.h"

#include <array>
#include <cstdint>
#include <cstring>

#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm89.hpp>

#include "simt/elements.h"
#include "simt/thread.h"

namespace tokcore::simt {
namespace {

struct Slot {
  void* d;
  const void* a;
  const void* b;
  const void* c;
};

// Where the v-th value of lane l lies in the matrix that CuTe's layout describes (the first mode varies fastest).
template <class Layout>
constexpr auto make_positions() {
  constexpr int num_values = cute::size<1>(Layout{});
  std::array<std::array<uint16_t, num_values>, 32> positions{};
  for (int lane = 0; lane < 32; ++lane) {
    for (int v = 0; v < num_values; ++v) positions[lane][v] = static_cast<uint16_t>(Layout{}(lane, v));
  }
  return positions;
}

// Sixteen rows at once; the compiler splits them where the machine's vectors are shorter.
using Floats = float __attribute__((vector_size(64)));
using Words = uint32_t __attribute__((vector_size(64)));

// c[n][m] += a[k][m] * b[k][n] for one k after the other. Products of up to 12 significant bits are exact in fp32, so
// that a fused multiply-add gives the same bits as a product and a sum.
template <class Vector, class Number>
[[gnu::always_inline]] inline void multiply_columns(const Number* a, const Number* b, Number* c, int size_k) {
  Vector sums[8];
  std::memcpy(sums, c, sizeof sums);
  for (int k = 0; k < size_k; ++k) {
    Vector column;
    std::memcpy(&column, a + k * 16, sizeof column);
#pragma GCC unroll 8
    for (int n = 0; n < 8; ++n) sums[n] += column * b[k * 8 + n];
  }
  std::memcpy(c, sums, sizeof sums);
}
#define TOKCORE_SIMT_EVERY_MACHINE __attribute__((target_clones("avx512f", "avx2", "default")))
TOKCORE_SIMT_EVERY_MACHINE void multiply_16x8(const float* a, const float* b, float* c, int size_k) {
  multiply_columns<Floats>(a, b, c, size_k);
}
TOKCORE_SIMT_EVERY_MACHINE void multiply_16x8(const uint32_t* a, const uint32_t* b, uint32_t* c, int size_k) {
  multiply_columns<Words>(a, b, c, size_k);
}
#undef TOKCORE_SIMT_EVERY_MACHINE

void multiply_8x8(const double* a, const double* b, double* c, int size_k) {
  for (int k = 0; k < size_k; ++k) {
    for (int n = 0; n < 8; ++n) {
      for (int m = 0; m < 8; ++m) c[n * 8 + m] += a[k * 8 + m] * b[k * 8 + n];
    }
  }
}

template <class Op>
void multiply_fragments(void* const* lanes) {
  using Traits = cute::MMA_Traits<Op>;
  using A = typename Traits::ValTypeA;
  using B = typename Traits::ValTypeB;
  using C = typename Traits::ValTypeC;
  // Integers modulo 2^32: what overflows wraps, as on the GPU without .satfinite.
  using Number = std::conditional_t<std::is_same_v<C, int32_t>, uint32_t, C>;
  constexpr int size_m = cute::size<0>(typename Traits::Shape_MNK{});
  constexpr int size_n = cute::size<1>(typename Traits::Shape_MNK{});
  constexpr int size_k = cute::size<2>(typename Traits::Shape_MNK{});
  static constexpr auto a_at = make_positions<typename Traits::ALayout>();
  static constexpr auto b_at = make_positions<typename Traits::BLayout>();
  static constexpr auto c_at = make_positions<typename Traits::CLayout>();

  alignas(64) Number a[size_k * size_m], b[size_k * size_n], c[size_n * size_m];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& slot = *static_cast<const Slot*>(lanes[lane]);
    for (size_t v = 0; v < a_at[lane].size(); ++v) a[a_at[lane][v]] = static_cast<Number>(element<A>(slot.a, v));
    for (size_t v = 0; v < b_at[lane].size(); ++v) b[b_at[lane][v]] = static_cast<Number>(element<B>(slot.b, v));
    for (size_t v = 0; v < c_at[lane].size(); ++v)
      std::memcpy(&c[c_at[lane][v]], static_cast<const Number*>(slot.c) + v, sizeof(Number));
  }
  if constexpr (size_m == 16) {
    multiply_16x8(a, b, c, size_k);
  } else {
    multiply_8x8(a, b, c, size_k);
  }
  for (int lane = 0; lane < 32; ++lane) {
    const auto& slot = *static_cast<const Slot*>(lanes[lane]);
    for (size_t v = 0; v < c_at[lane].size(); ++v)
      std::memcpy(static_cast<Number*>(slot.d) + v, &c[c_at[lane][v]], sizeof(Number));
  }
}

struct Entry {
  const char* name;
  void (*execute)(void* const* lanes);
};

constexpr Entry kEntries[] = {
#define TOKCORE_SIMT_MMA_ENTRY(name) {#name, &multiply_fragments<cute::name>},
    TOKCORE_SIMT_MMA_OPS(TOKCORE_SIMT_MMA_ENTRY)
#undef TOKCORE_SIMT_MMA_ENTRY
};

}  // namespace

void mma(MmaOp op, void* d, const void* a, const void* b, const void* c) {
  const Entry& entry = kEntries[static_cast<int>(op)];
  Slot slot{d, a, b, c};
  warp_collective(&entry, entry.name, kFullMask, &slot, entry.execute);
}

}  // namespace tokcore::simt
