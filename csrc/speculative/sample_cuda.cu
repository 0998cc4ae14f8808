#include "speculative/sample_cuda.cuh"
