// Element types that kernels read and write, without torch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tokcore {

enum class DType : int8_t { kFloat32, kBFloat16, kFloat16 };

// Storage only: arithmetic happens in fp32 vectors (cpu/vec.h) or in matrix tiles.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class T>
inline constexpr DType kDTypeOf = DType::kFloat32;
template <>
inline constexpr DType kDTypeOf<BFloat16> = DType::kBFloat16;
template <>
inline constexpr DType kDTypeOf<Float16> = DType::kFloat16;

constexpr size_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

// Calls work(element) with an element of the C++ type that `dtype` names.
template <class Work>
auto with_dtype(DType dtype, Work&& work) {
  switch (dtype) {
    case DType::kFloat32:
      return work(float{});
    case DType::kBFloat16:
      return work(BFloat16{});
    case DType::kFloat16:
      return work(Float16{});
  }
  __builtin_unreachable();
}

}  // namespace tokcore
