#pragma once

#include <vector_types.h>

#include <cstddef>

namespace tokcore::simt {

// A grid and what each of its threads runs.
struct LaunchShape {
  const char* name;     // of the kernel
  dim3 grid;            // blocks
  dim3 block;           // threads
  size_t shared_bytes;  // dynamic shared memory of a block
  unsigned cluster;     // blocks of a cluster, along x
  void (*body)(const void* context);
  const void* context;
};

}  // namespace tokcore::simt
