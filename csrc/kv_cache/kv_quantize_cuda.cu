#include "kv_cache/kv_quantize_cuda.cuh"
