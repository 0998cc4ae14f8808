#include "kv_cache/kv_saliency_cuda.cuh"
