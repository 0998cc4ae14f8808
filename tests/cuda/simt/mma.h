// mma.sync of a warp. The generated headers of cute/arch call it.
#pragma once

#include "simt_mma_ops.h"

namespace tokcore::simt {

enum class MmaOp {
#define TOKCORE_SIMT_MMA_OP(name) k##name,
  TOKCORE_SIMT_MMA_OPS(TOKCORE_SIMT_MMA_OP)
#undef TOKCORE_SIMT_MMA_OP
};

// d = a * b + c; the registers of this lane. Sums in fp32, fp64 or int32, one k after the other.
void mma(MmaOp op, void* d, const void* a, const void* b, const void* c);

}  // namespace tokcore::simt
