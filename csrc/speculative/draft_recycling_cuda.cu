#include "speculative/draft_recycling_cuda.cuh"
