// wgmma: fence, matrix products into accumulators that only a wait gives back, commit groups.
#pragma once

#include <cstdint>

#include "simt/block.h"
#include "simt/wgmma_types.h"

namespace tokcore::simt {

// D = A B (+ D). `accumulators` are this thread's registers, num_accumulators(op) of them; A is a descriptor, or 4
// registers. The registers must stay where they are until the wait.
void wgmma(const WgmmaOp& op, void* const* accumulators, uint64_t a, uint64_t b, bool accumulate);
void wgmma(const WgmmaOp& op, void* const* accumulators, const uint32_t* const* a, uint64_t b, bool accumulate);

void wgmma_fence();
void wgmma_commit_group();
void wgmma_wait_group(int allowed);

// For writes by TMA: fail()s if an operand of a product that its warp has not waited for lies there. No policy is
// needed to bring the two together: without a wait before the write nothing orders them.
void check_not_read_by_wgmma(Block& block, uint32_t offset, uint32_t bytes, const char* primitive);

}  // namespace tokcore::simt
