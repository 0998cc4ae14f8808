// Everything of the family on CUDA but the products, which are compiled one by one.
#include "cross_entropy/linear_logprobs_launch_cuda.cuh"
