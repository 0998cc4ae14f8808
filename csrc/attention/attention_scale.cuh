// From scores to powers of two.
#pragma once

#include "tokcore/cuda/online_softmax.cuh"

namespace tokcore::attention {

// The weight of a score s = q k^T is 2^(factor (s - maximum)).
struct ScoreScale {
  float scale;
  float factor;  // scale log2(e)
  float limit;   // maxima are kept inside [-limit, limit], so that factor times a maximum and differences are finite

  static ScoreScale of(float scale) {
    const float factor = scale * cuda::kLog2E;
    return {scale, factor, factor > 1.0f ? cuda::kFarthest / factor : cuda::kFarthest};
  }
};

}  // namespace tokcore::attention
