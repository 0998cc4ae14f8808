# CUDA sources of the family; the functions are described in cmake/CudaKernels.cmake.
tokcore_add_cuda_entries(
  speculative/draft_candidates_cuda.cpp speculative/draft_heap_cuda.cpp speculative/draft_ngram_cuda.cpp
  speculative/draft_recycling_cuda.cpp speculative/draft_samples_cuda.cpp speculative/draft_trigram_cuda.cpp
  speculative/sample_cuda.cpp speculative/tree_links_cuda.cpp speculative/verify_tree_cuda.cpp)
tokcore_add_cuda_kernels(
  SOURCES speculative/draft_candidates_cuda.cu speculative/draft_heap_cuda.cu speculative/draft_ngram_cuda.cu
          speculative/draft_recycling_cuda.cu speculative/draft_samples_cuda.cu speculative/draft_trigram_cuda.cu
          speculative/sample_cuda.cu speculative/tree_links_cuda.cu speculative/verify_tree_cuda.cu)
