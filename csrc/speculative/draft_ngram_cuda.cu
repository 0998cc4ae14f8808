#include "speculative/draft_ngram_cuda.cuh"
