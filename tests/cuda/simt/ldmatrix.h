// ldmatrix: a warp loads 8x8 matrices of 16-bit elements from shared memory into mma fragments.
#pragma once

#include <cstdint>

namespace tokcore::simt {

// Lane l gives the address of row l % 8 of matrix l / 8, and receives one register per matrix (1, 2 or 4). Lanes past
// 8 * num_matrices give an address that is not used.
void ldmatrix(int num_matrices, bool transposed, const void* row, uint32_t* registers);

}  // namespace tokcore::simt
