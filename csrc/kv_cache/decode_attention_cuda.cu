#include "kv_cache/decode_attention_cuda.cuh"
