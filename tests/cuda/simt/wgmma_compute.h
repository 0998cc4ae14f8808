// The arithmetic of one warp's part of a wgmma.
#pragma once

#include <cstdint>

#include "simt/wgmma_types.h"

namespace tokcore::simt {

// Operands as they lie in shared memory or registers, unpermuted, and room for their values. Too large for a fiber's
// stack.
struct WgmmaOperands {
  alignas(64) unsigned char a[kWgmmaRows * kWgmmaBytesOfK];  // [16][32 bytes]: k runs fastest
  alignas(64) unsigned char b[kWgmmaMaxN * kWgmmaBytesOfK];  // [n][32 bytes], or [k][n] where B is MN-major

  template <class Value>
  struct Values {
    Value a[kWgmmaRows * kWgmmaBytesOfK];  // [16][k]
    Value b[kWgmmaBytesOfK * kWgmmaMaxN];  // [k][n]
  };
  union {
    Values<float> f32;
    Values<int32_t> s32;
  };
};

// The warp's 16 × n part of D; floats, or 32-bit integers where D is s32.
struct WgmmaTile {
  union {
    float f32[kWgmmaRows * kWgmmaMaxN];
    int32_t s32[kWgmmaRows * kWgmmaMaxN];
  };
};

// tile = A B (+ tile), k in order, in fp32 or exact integers. Operands of TF32 lose their low 13 bits; f16 results are
// rounded once.
void compute_wgmma(const WgmmaOp& op, WgmmaOperands& operands, bool accumulate, WgmmaTile& tile);

}  // namespace tokcore::simt
