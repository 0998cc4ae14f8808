#include "simt/tensor_map.h"

#include <cstring>
#include <string>

#include "simt/thread.h"

namespace tokcore::simt {
namespace {

constexpr uint64_t kMagic = 0x70616d7473696d74;  // no driver writes this: a map from elsewhere is recognised

// What lies in the 128 opaque bytes.
struct Encoded {
  uint64_t magic;
  uint64_t base;
  uint64_t stride_bytes[kMaxTensorRank - 1];  // of dimensions 1 to 4
  uint32_t last[kMaxTensorRank];              // size - 1: sizes go up to 2^32
  uint16_t box[kMaxTensorRank];
  uint8_t rank, swizzle_mask, type, element_bytes;
};
static_assert(sizeof(Encoded) <= sizeof(CUtensorMap));

// 0: a type that is not emulated.
uint8_t element_bytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return 2;
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_TFLOAT32:
      return 4;
    default:
      return 0;
  }
}

// The span of a swizzle in bytes, 0 for none, -1 for one that is not emulated.
int swizzle_span(CUtensorMapSwizzle swizzle) {
  switch (swizzle) {
    case CU_TENSOR_MAP_SWIZZLE_NONE:
      return 0;
    case CU_TENSOR_MAP_SWIZZLE_32B:
      return 32;
    case CU_TENSOR_MAP_SWIZZLE_64B:
      return 64;
    case CU_TENSOR_MAP_SWIZZLE_128B:
      return 128;
    default:
      return -1;
  }
}

bool is_valid(const void* map, uint32_t rank, const void* base, const uint64_t* sizes, const uint64_t* strides_bytes,
              const uint32_t* box, const uint32_t* element_steps, uint32_t bytes, int span) {
  if (map == nullptr || reinterpret_cast<uintptr_t>(map) % 64 != 0) return false;
  if (rank < 1 || rank > kMaxTensorRank || base == nullptr || reinterpret_cast<uintptr_t>(base) % 16 != 0) return false;
  for (uint32_t i = 0; i < rank; ++i) {
    if (sizes[i] == 0 || sizes[i] > uint64_t{1} << 32) return false;
    if (box[i] == 0 || box[i] > 256) return false;
    if (element_steps[i] == 0 || element_steps[i] > 8) return false;
    if (i + 1 < rank && (strides_bytes[i] % 16 != 0 || strides_bytes[i] >= uint64_t{1} << 40)) return false;
  }
  const uint32_t row_bytes = box[0] * bytes;
  return row_bytes % 16 == 0 && (span == 0 || row_bytes <= static_cast<uint32_t>(span));
}

}  // namespace

uint32_t TensorMap::num_rows() const {
  uint32_t rows = 1;
  for (uint32_t i = 1; i < rank; ++i) rows *= box[i];
  return rows;
}

TensorMap decode_tensor_map(const void* map, const char* primitive) {
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0)
    fail(std::string(primitive) + ": the tensor map is not 64-byte aligned");
  Encoded encoded;
  std::memcpy(&encoded, map, sizeof(encoded));
  if (encoded.magic != kMagic)
    fail(std::string(primitive) + ": not a tensor map (was it encoded, was it copied whole?)");
  TensorMap decoded = {};
  decoded.base = reinterpret_cast<unsigned char*>(encoded.base);
  decoded.rank = encoded.rank;
  decoded.swizzle_mask = encoded.swizzle_mask;
  decoded.type = static_cast<CUtensorMapDataType>(encoded.type);
  decoded.stride_bytes[0] = encoded.element_bytes;
  for (uint32_t i = 0; i < decoded.rank; ++i) {
    decoded.size[i] = uint64_t{encoded.last[i]} + 1;
    decoded.box[i] = encoded.box[i];
    if (i > 0) decoded.stride_bytes[i] = encoded.stride_bytes[i - 1];
  }
  return decoded;
}

}  // namespace tokcore::simt

// The driver's function, for host code that builds tensor maps: ours and CuTe's.
extern "C" CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base,
                                           const cuuint64_t* sizes, const cuuint64_t* strides_bytes,
                                           const cuuint32_t* box, const cuuint32_t* element_steps,
                                           CUtensorMapInterleave interleave, CUtensorMapSwizzle swizzle,
                                           CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill) {
  using namespace tokcore::simt;
  const uint8_t bytes = element_bytes(type);
  const int span = swizzle_span(swizzle);
  if (bytes == 0 || span < 0 || interleave != CU_TENSOR_MAP_INTERLEAVE_NONE ||
      fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) {
    throw Error("cuTensorMapEncodeTiled: this data type, swizzle, interleave or fill is not emulated");
  }
  if (!is_valid(map, rank, base, sizes, strides_bytes, box, element_steps, bytes, span))
    return CUDA_ERROR_INVALID_VALUE;
  Encoded encoded = {};
  encoded.magic = kMagic;
  encoded.base = reinterpret_cast<uintptr_t>(base);
  encoded.rank = static_cast<uint8_t>(rank);
  encoded.swizzle_mask = static_cast<uint8_t>(span == 0 ? 0 : span / 16 - 1);
  encoded.type = static_cast<uint8_t>(type);
  encoded.element_bytes = bytes;
  for (uint32_t i = 0; i < rank; ++i) {
    if (element_steps[i] != 1) throw Error("cuTensorMapEncodeTiled: element strides other than 1 are not emulated");
    encoded.last[i] = static_cast<uint32_t>(sizes[i] - 1);
    encoded.box[i] = static_cast<uint16_t>(box[i]);
    if (i > 0) encoded.stride_bytes[i - 1] = strides_bytes[i - 1];
  }
  std::memset(map, 0, sizeof(*map));
  std::memcpy(map, &encoded, sizeof(encoded));
  return CUDA_SUCCESS;
}
