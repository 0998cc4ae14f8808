# CUDA sources of the family; the functions are described in cmake/CudaKernels.cmake.
tokcore_add_cuda_entries(kv_cache/kv_append_cuda.cpp kv_cache/kv_quantize_cuda.cpp)
tokcore_add_cuda_kernels(SOURCES kv_cache/kv_append_cuda.cu kv_cache/kv_quantize_cuda.cu)
