// Results below the normal range as zeros, for kernels whose contracts end there.
#pragma once

#include <xmmintrin.h>

#include <cstdint>

namespace tokcore::cpu {

// While it lives, this thread's vector instructions give 0 in place of subnormal results, each of which costs a hundred
// cycles on x86-64. Weights of attention are exponentials: where scores lie far apart, most of them are that small.
class SubnormalsAsZero {
 public:
  SubnormalsAsZero() : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | kFlushToZero); }
  ~SubnormalsAsZero() { _mm_setcsr(saved_); }
  SubnormalsAsZero(const SubnormalsAsZero&) = delete;
  SubnormalsAsZero& operator=(const SubnormalsAsZero&) = delete;

 private:
  static constexpr uint32_t kFlushToZero = 1u << 15;
  const uint32_t saved_;
};

}  // namespace tokcore::cpu
