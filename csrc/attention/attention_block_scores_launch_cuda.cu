// Everything of attention_block_scores on CUDA but the products, which are compiled one by one.
#include "attention/attention_block_scores_launch_cuda.cuh"
