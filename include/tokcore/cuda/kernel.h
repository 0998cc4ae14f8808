// What every device source begins with: the same words under nvcc and, with TOKCORE_SIMT, under the C++ compiler that
// builds the kernels for execution on the CPU.
//
// TOKCORE_DEVICE                  a function of the device
// TOKCORE_HOST_DEVICE             a function of both sides
// TOKCORE_SHARED_MEMORY(name)     declares `name`, the block's dynamic shared memory: bytes, 1024-byte aligned
#pragma once

#ifdef TOKCORE_SIMT

#include "simt/cuda_builtins.h"

#define TOKCORE_DEVICE inline
#define TOKCORE_HOST_DEVICE inline
#define TOKCORE_SHARED_MEMORY(name) unsigned char* const name = ::tokcore::simt::this_block().shared

#else

#include <cuda_runtime.h>

#define TOKCORE_DEVICE __device__ __forceinline__
#define TOKCORE_HOST_DEVICE __host__ __device__ __forceinline__
#define TOKCORE_SHARED_MEMORY(name) extern __shared__ __align__(1024) unsigned char name[]

#endif
