#include "simt/tma_reduce.h"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstring>
#include <mutex>
#include <string>

#include "simt/thread.h"

namespace tokcore::simt {
namespace {

template <class Element, class Add>
void add_elements(void* to, const void* from, uint32_t bytes, const Add& add) {
  static std::mutex mutex;  // blocks may run on several host threads
  const std::lock_guard lock(mutex);
  for (uint32_t i = 0; i < bytes; i += sizeof(Element)) {
    Element sum, term;
    std::memcpy(&sum, static_cast<char*>(to) + i, sizeof(Element));
    std::memcpy(&term, static_cast<const char*>(from) + i, sizeof(Element));
    sum = add(sum, term);
    std::memcpy(static_cast<char*>(to) + i, &sum, sizeof(Element));
  }
}

}  // namespace

void check_reducible(CUtensorMapDataType type, const char* primitive) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return;
    default:
      fail(std::string(primitive) + ": the tensor map's data type cannot be added");
  }
}

void reduce_add(CUtensorMapDataType type, void* to, const void* from, uint32_t bytes) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT32:
    case CU_TENSOR_MAP_DATA_TYPE_INT32:
      return add_elements<uint32_t>(to, from, bytes, [](uint32_t a, uint32_t b) { return a + b; });
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT32:
      return add_elements<float>(to, from, bytes, [](float a, float b) { return a + b; });
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
      return add_elements<__half>(
          to, from, bytes, [](__half a, __half b) { return __float2half_rn(__half2float(a) + __half2float(b)); });
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return add_elements<__nv_bfloat16>(to, from, bytes, [](__nv_bfloat16 a, __nv_bfloat16 b) {
        return __float2bfloat16_rn(__bfloat162float(a) + __bfloat162float(b));
      });
    default:
      check_reducible(type, "TMA reduce-add");
  }
}

}  // namespace tokcore::simt
