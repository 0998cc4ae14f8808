// What launchers are told of the GPU, and of a call.
#pragma once

#include <cstdint>

#include "tokcore/cuda/stream.h"

namespace tokcore {

struct CudaMachine {
  int capability;  // 80, 86, 89, 90, 120
  int multiprocessors;
  int64_t l2_bytes;
};

// Scratch memory of a call, 256-byte aligned, and where it runs.
struct CudaCall {
  CudaMachine machine;
  void* workspace;
  cuda::Stream stream;
};

}  // namespace tokcore
