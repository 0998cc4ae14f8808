#include "kv_cache/kv_compact_cuda.cuh"
