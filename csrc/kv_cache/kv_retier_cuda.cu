#include "kv_cache/kv_retier_cuda.cuh"
