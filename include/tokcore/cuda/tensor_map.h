// Tensor maps: how a TMA copy reads or writes a tile of a tensor in global memory. Host side only; a kernel takes the
// map inside a __grid_constant__ parameter.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>

#include "tokcore/common/dtype.h"
#ifndef TOKCORE_SIMT
#include <cuda_runtime_api.h>
#endif

namespace tokcore::cuda {

// What a map moves: TMA only looks at the size, except where it adds (reductions) or fills.
enum class TensorMapElement { kByte, kFloat16, kBFloat16, kFloat32, kInt32 };

// How the 16-byte chunks of a row are permuted in shared memory; the number is the row length that it covers, in bytes.
enum class TensorMapSwizzle { kNone = 0, k32 = 32, k64 = 64, k128 = 128 };

inline constexpr int kTensorMapMaxRank = 5;
inline constexpr uint32_t kTensorMapMaxBox = 256;

constexpr uint32_t size_of(TensorMapElement element) {
  switch (element) {
    case TensorMapElement::kByte:
      return 1;
    case TensorMapElement::kFloat16:
    case TensorMapElement::kBFloat16:
      return 2;
    case TensorMapElement::kFloat32:
    case TensorMapElement::kInt32:
      return 4;
  }
  return 0;
}

constexpr TensorMapElement tensor_map_element(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return TensorMapElement::kBFloat16;
    case DType::kFloat16:
      return TensorMapElement::kFloat16;
    default:
      return TensorMapElement::kFloat32;
  }
}

namespace detail {

[[noreturn]] inline void refuse_tensor_map(const std::string& argument, const std::string& reason) {
  throw std::invalid_argument("make_tensor_map: " + argument + " " + reason);
}

inline std::string item(const char* array, size_t index) {
  return std::string(array) + "[" + std::to_string(index) + "]";
}

// The driver answers every mistake with the same code; these checks say which argument is wrong.
inline void check_tensor_map(TensorMapElement element, const void* base, std::span<const uint64_t> sizes,
                             std::span<const uint64_t> strides_bytes, std::span<const uint32_t> box,
                             TensorMapSwizzle swizzle) {
  const size_t rank = sizes.size();
  const auto text = [](uint64_t value) { return std::to_string(value); };
  if (rank < 1 || rank > kTensorMapMaxRank)
    refuse_tensor_map("sizes", "must name 1 to 5 dimensions, not " + text(rank));
  if (strides_bytes.size() + 1 != rank) {
    refuse_tensor_map("strides_bytes", "must name every dimension but the innermost: " + text(rank - 1) + ", not " +
                                           text(strides_bytes.size()));
  }
  if (box.size() != rank) refuse_tensor_map("box", "must name " + text(rank) + " dimensions, not " + text(box.size()));
  if (reinterpret_cast<uintptr_t>(base) % 16 != 0) refuse_tensor_map("base", "must be aligned to 16 bytes");
  for (size_t i = 0; i < rank; ++i) {
    if (sizes[i] == 0 || sizes[i] > (uint64_t{1} << 32)) {
      refuse_tensor_map(item("sizes", i), "must be in [1, 2^32], not " + text(sizes[i]));
    }
    if (box[i] == 0 || box[i] > kTensorMapMaxBox) {
      refuse_tensor_map(item("box", i), "must be in [1, 256], not " + text(box[i]));
    }
  }
  for (size_t i = 0; i + 1 < rank; ++i) {
    if (strides_bytes[i] % 16 != 0 || strides_bytes[i] >= (uint64_t{1} << 40)) {
      refuse_tensor_map(item("strides_bytes", i), "must be a multiple of 16 below 2^40, not " + text(strides_bytes[i]));
    }
  }
  const uint32_t inner_bytes = box[0] * size_of(element);
  if (inner_bytes % 16 != 0) refuse_tensor_map("box[0]", "must span a multiple of 16 bytes, not " + text(inner_bytes));
  if (swizzle != TensorMapSwizzle::kNone && inner_bytes > static_cast<uint32_t>(swizzle)) {
    refuse_tensor_map("box[0]", "must span at most the " + text(static_cast<uint32_t>(swizzle)) +
                                    " bytes of the swizzle, not " + text(inner_bytes));
  }
}

constexpr CUtensorMapDataType driver_type(TensorMapElement element) {
  switch (element) {
    case TensorMapElement::kByte:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    case TensorMapElement::kFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case TensorMapElement::kBFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case TensorMapElement::kFloat32:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
    case TensorMapElement::kInt32:
      return CU_TENSOR_MAP_DATA_TYPE_INT32;
  }
  return CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

constexpr CUtensorMapSwizzle driver_swizzle(TensorMapSwizzle swizzle) {
  switch (swizzle) {
    case TensorMapSwizzle::kNone:
      return CU_TENSOR_MAP_SWIZZLE_NONE;
    case TensorMapSwizzle::k32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case TensorMapSwizzle::k64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case TensorMapSwizzle::k128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
  }
  return CU_TENSOR_MAP_SWIZZLE_NONE;
}

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// The driver's encoder, asked of the runtime: a library that linked libcuda itself would not load where no driver is.
inline EncodeTiled encode_tiled() {
#ifdef TOKCORE_SIMT
  return &cuTensorMapEncodeTiled;
#else
  static const EncodeTiled encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    if (error != cudaSuccess) {
      throw std::runtime_error(std::string("make_tensor_map: the CUDA driver cannot be asked for "
                                           "cuTensorMapEncodeTiled: ") +
                               cudaGetErrorString(error));
    }
    if (found != cudaDriverEntryPointSuccess || entry == nullptr) {
      throw std::runtime_error("make_tensor_map: this CUDA driver has no cuTensorMapEncodeTiled (CUDA 12.0 or newer)");
    }
    return reinterpret_cast<EncodeTiled>(entry);
  }();
  return encode;
#endif
}

}  // namespace detail

// The map of a tensor with `sizes` (innermost first, in elements), whose dimensions but the innermost lie
// `strides_bytes` apart, cut into tiles of `box` elements. Elements outside the tensor read as zero and are not
// written.
inline CUtensorMap make_tensor_map(TensorMapElement element, const void* base, std::span<const uint64_t> sizes,
                                   std::span<const uint64_t> strides_bytes, std::span<const uint32_t> box,
                                   TensorMapSwizzle swizzle) {
  detail::check_tensor_map(element, base, sizes, strides_bytes, box, swizzle);
  constexpr cuuint32_t kUnitSteps[kTensorMapMaxRank] = {1, 1, 1, 1, 1};
  cuuint64_t strides[kTensorMapMaxRank] = {};
  for (size_t i = 0; i < strides_bytes.size(); ++i) strides[i] = strides_bytes[i];
  cuuint64_t extents[kTensorMapMaxRank] = {};
  for (size_t i = 0; i < sizes.size(); ++i) extents[i] = sizes[i];
  // The driver insists on the alignment, which GCC 12 does not always give to the place of a returned value.
  alignas(alignof(CUtensorMap)) unsigned char encoded[sizeof(CUtensorMap)];
  const CUresult result = detail::encode_tiled()(
      reinterpret_cast<CUtensorMap*>(encoded), detail::driver_type(element), static_cast<cuuint32_t>(sizes.size()),
      const_cast<void*>(base), extents, strides, box.data(), kUnitSteps, CU_TENSOR_MAP_INTERLEAVE_NONE,
      detail::driver_swizzle(swizzle), CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw std::runtime_error("make_tensor_map: cuTensorMapEncodeTiled failed with code " +
                             std::to_string(static_cast<int>(result)));
  }
  CUtensorMap map;
  std::memcpy(&map, encoded, sizeof(map));
  return map;
}

// A row-major matrix, the commonest case: num_rows × num_columns elements with `stride_row_bytes` between rows, moved
// in tiles of box_rows × box_columns.
inline CUtensorMap make_matrix_map(TensorMapElement element, const void* base, uint64_t num_rows, uint64_t num_columns,
                                   uint64_t stride_row_bytes, uint32_t box_rows, uint32_t box_columns,
                                   TensorMapSwizzle swizzle) {
  const uint64_t sizes[] = {num_columns, num_rows};
  const uint64_t strides_bytes[] = {stride_row_bytes};
  const uint32_t box[] = {box_columns, box_rows};
  return make_tensor_map(element, base, sizes, strides_bytes, box, swizzle);
}

}  // namespace tokcore::cuda
