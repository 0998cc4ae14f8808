#include "speculative/draft_trigram_cuda.cuh"
