#include "speculative/draft_samples_cuda.cuh"
