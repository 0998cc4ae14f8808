// What cp.reduce.async.bulk.tensor .add does to global memory.
#pragma once

#include <cuda.h>

#include <cstdint>

namespace tokcore::simt {

void check_reducible(CUtensorMapDataType type, const char* primitive);

// Adds `bytes` bytes of elements; each element in one step, as seen from other blocks.
void reduce_add(CUtensorMapDataType type, void* to, const void* from, uint32_t bytes);

}  // namespace tokcore::simt
