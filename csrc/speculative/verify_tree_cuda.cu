#include "speculative/verify_tree_cuda.cuh"
