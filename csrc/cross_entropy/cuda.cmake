# CUDA sources of the family; the functions are described in cmake/CudaKernels.cmake.
tokcore_add_cuda_entries(cross_entropy/linear_cross_entropy_chunked_cuda.cpp cross_entropy/linear_logprobs_cuda.cpp)
tokcore_add_cuda_kernels(SOURCES cross_entropy/linear_logprobs_launch_cuda.cu)
tokcore_add_cuda_kernels(
  TEMPLATE cross_entropy/linear_logprobs_forward_sm80.cu.in VARIABLES ELEMENT INSTANCES BFloat16 Float16 float)
tokcore_add_cuda_kernels(
  TEMPLATE cross_entropy/linear_logprobs_backward_sm80.cu.in VARIABLES ELEMENT INSTANCES BFloat16 Float16 float)
tokcore_add_cuda_kernels(
  TEMPLATE cross_entropy/linear_logprobs_forward_sm90.cu.in VARIABLES ELEMENT INSTANCES BFloat16 Float16)
tokcore_add_cuda_kernels(
  TEMPLATE cross_entropy/linear_logprobs_backward_sm90.cu.in VARIABLES ELEMENT INSTANCES BFloat16 Float16)
