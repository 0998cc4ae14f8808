// Everything of paro_attention on CUDA but the products, which are compiled one by one.
#include "attention/paro_attention_launch_cuda.cuh"
