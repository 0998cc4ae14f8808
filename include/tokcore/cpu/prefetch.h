// Memory that is needed next, fetched into L2 a few lines at a time while the matrix unit works: the loads of tiles run
// too far ahead of the hardware's prefetchers.
#pragma once

#include <cstdint>

#include "tokcore/common/math.h"

namespace tokcore::cpu {

class Prefetcher {
 public:
  Prefetcher() = default;
  // Spreads `bytes` from `data` over `steps` calls; data may be null.
  Prefetcher(const void* data, int64_t bytes, int64_t steps)
      : next_(static_cast<const char*>(data)),
        end_(data == nullptr ? nullptr : next_ + bytes),
        bytes_per_step_(round_up(ceil_div(bytes, max(steps, 1)), kLine)) {}

  __attribute__((always_inline)) void operator()() {
    if (next_ >= end_) return;
    for (int64_t offset = 0; offset < bytes_per_step_; offset += kLine) __builtin_prefetch(next_ + offset, 0, 2);
    next_ += bytes_per_step_;
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* next_ = nullptr;
  const char* end_ = nullptr;
  int64_t bytes_per_step_ = kLine;
};

}  // namespace tokcore::cpu
