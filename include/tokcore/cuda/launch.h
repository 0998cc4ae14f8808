// Starting a kernel: on a GPU through the CUDA runtime, or, with TOKCORE_SIMT, executed on the CPU by the tests.
#pragma once

#include <cstddef>

#include "tokcore/cuda/stream.h"

namespace tokcore::cuda {

struct Grid {
  unsigned x = 1, y = 1, z = 1;  // blocks
};

struct LaunchConfig {
  Grid grid;
  unsigned threads;         // of a block
  size_t shared_bytes = 0;  // dynamic shared memory of a block
  Stream stream = nullptr;
  unsigned cluster = 1;   // blocks of a cluster, along x
  const char* name = "";  // what an error message calls the kernel
};

}  // namespace tokcore::cuda

#ifdef TOKCORE_SIMT
#include "simt/launch.h"
#else
#include "tokcore/cuda/launch_runtime.h"
#endif
