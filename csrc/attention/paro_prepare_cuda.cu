#include "attention/paro_prepare_cuda.cuh"
