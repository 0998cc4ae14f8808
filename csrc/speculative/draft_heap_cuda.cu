#include "speculative/draft_heap_cuda.cuh"
