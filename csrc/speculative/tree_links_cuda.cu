#include "speculative/tree_links_cuda.cuh"
