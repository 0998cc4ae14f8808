// Everything of block_sparse_attention on CUDA but the products, which are compiled one by one.
#include "attention/block_sparse_attention_launch_cuda.cuh"
