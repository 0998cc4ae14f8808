#include "speculative/draft_candidates_cuda.cuh"
