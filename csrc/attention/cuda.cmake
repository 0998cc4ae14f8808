# CUDA sources of the family; the functions are described in cmake/CudaKernels.cmake.
tokcore_add_cuda_entries(attention/block_sparse_attention_cuda.cpp attention/paro_cuda.cpp)
tokcore_add_cuda_kernels(SOURCES attention/block_sparse_attention_launch_cuda.cu attention/paro_prepare_cuda.cu
                                 attention/paro_attention_launch_cuda.cu)
tokcore_add_cuda_entries(attention/attention_block_scores_cuda.cpp)
tokcore_add_cuda_kernels(
  TEMPLATE attention/block_sparse_attention_forward_sm80.cu.in VARIABLES ELEMENT HEAD_DIM
  INSTANCES "BFloat16 64" "BFloat16 128" "BFloat16 256" "Float16 64" "Float16 128" "Float16 256"
            "float 64" "float 128" "float 256")
tokcore_add_cuda_kernels(
  TEMPLATE attention/block_sparse_attention_forward_sm90.cu.in VARIABLES ELEMENT HEAD_DIM
  INSTANCES "BFloat16 64" "BFloat16 128" "BFloat16 256" "Float16 64" "Float16 128" "Float16 256")
tokcore_add_cuda_kernels(
  TEMPLATE attention/block_sparse_attention_backward_sm80.cu.in VARIABLES ELEMENT HEAD_DIM
  INSTANCES "BFloat16 64" "BFloat16 128" "BFloat16 256" "Float16 64" "Float16 128" "Float16 256"
            "float 64" "float 128" "float 256")
tokcore_add_cuda_kernels(SOURCES attention/attention_block_scores_launch_cuda.cu)
tokcore_add_cuda_kernels(
  TEMPLATE attention/attention_block_scores_sm80.cu.in VARIABLES ELEMENT HEAD_DIM
  INSTANCES "BFloat16 64" "BFloat16 128" "BFloat16 256" "Float16 64" "Float16 128" "Float16 256"
            "float 64" "float 128" "float 256")
tokcore_add_cuda_kernels(
  TEMPLATE attention/paro_attention_sm80.cu.in VARIABLES QK PV HEAD_DIM
  INSTANCES "int8_t int8_t 64" "int8_t int8_t 128" "int8_t int8_t 256"
            "int8_t BFloat16 64" "int8_t BFloat16 128" "int8_t BFloat16 256"
            "BFloat16 int8_t 64" "BFloat16 int8_t 128" "BFloat16 int8_t 256"
            "BFloat16 BFloat16 64" "BFloat16 BFloat16 128" "BFloat16 BFloat16 256")
