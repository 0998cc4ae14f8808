// What CUDA kernels ask of a cache beyond cache_check.h. Values stay unread: what kernels do with bad ones is said in
// each op's header.
#pragma once

#include "core/cuda_scope.h"
#include "kv_cache/cache_check.h"

namespace tokcore::kv_cache {

inline void check_aligned(const Checker& check, const char* argument, const Tensor& tensor) {
  constexpr uintptr_t kAlignment = 16;  // of copies into shared memory
  const auto address = reinterpret_cast<uintptr_t>(tensor.const_data_ptr());
  check.require(address % kAlignment == 0, argument, "data aligned to 16 bytes on CUDA",
                "an address of 16 n + " + std::to_string(address % kAlignment));
}

inline void check_cache_is_aligned(const Checker& check, const CacheArguments& a) {
  for (int i = 0; i < kRecentTensors; ++i) check_aligned(check, kRecentNames[i], a.recent[i]);
  for (int name = 0; name < kNumTiers; ++name) {
    const std::vector<Tensor>& tier = name == kHighTier ? a.high : a.low;
    if (tier.empty()) continue;
    for (int i = kKPages; i <= kVZero; ++i) check_aligned(check, kTierNames[name][i], tier[i]);
  }
}

}  // namespace tokcore::kv_cache
