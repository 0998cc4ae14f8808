# CUDA sources of the family; the functions are described in cmake/CudaKernels.cmake.
tokcore_add_cuda_entries(
  kv_cache/decode_attention_cuda.cpp kv_cache/kv_append_cuda.cpp kv_cache/kv_compact_cuda.cpp
  kv_cache/kv_quantize_cuda.cpp kv_cache/kv_retier_cuda.cpp kv_cache/kv_saliency_cuda.cpp)
tokcore_add_cuda_kernels(
  SOURCES kv_cache/decode_attention_cuda.cu kv_cache/kv_append_cuda.cu kv_cache/kv_compact_cuda.cu
          kv_cache/kv_quantize_cuda.cu kv_cache/kv_retier_cuda.cu kv_cache/kv_saliency_cuda.cu)
tokcore_add_cuda_kernels(
  TEMPLATE kv_cache/decode_attention_sm80.cu.in VARIABLES ELEMENT STRIPS
  INSTANCES "BFloat16 1" "BFloat16 2" "Float16 1" "Float16 2" "float 1" "float 2")
tokcore_add_cuda_kernels(
  TEMPLATE kv_cache/kv_saliency_sm80.cu.in VARIABLES ELEMENT ALIGNED
  INSTANCES "BFloat16 true" "BFloat16 false" "Float16 true" "Float16 false" "float true" "float false")
