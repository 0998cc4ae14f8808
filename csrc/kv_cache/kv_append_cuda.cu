#include "kv_cache/kv_append_cuda.cuh"
