// Validation of decode_attention beyond that of the cache; shared by the backends.
#pragma once

#include "kv_cache/cache_check.h"
#include "tokcore/kv_cache/decode_attention.h"

namespace tokcore::kv_cache {

inline void check_decode(const Checker& check, const Tensor& q, const CacheChecker& cache, double scale,
                         std::optional<double> softcap, std::optional<int64_t> window) {
  const Tensor& recent = cache.window();
  const KvCacheParams& params = cache.params();
  check.dtype(q, "q", recent.scalar_type());
  check.same_device(q, "q", recent, "recent.window_k");
  check.rank(q, "q", 4);
  const int64_t heads = q.size(2);
  check.shape(q, "q", {params.num_sequences, q.size(1), heads, params.head_dim}, "[B, M, H, D], B and D of the cache");
  check.require(params.num_heads > 0 && heads % params.num_heads == 0 && heads > 0, "q",
                "H a positive multiple of " + std::to_string(params.num_heads) + " (Hkv)", heads);
  check.require(std::isfinite(scale), "scale", "a finite value", scale);
  if (softcap.has_value()) {
    check.require(*softcap > 0.0 && std::isfinite(*softcap), "softcap", "a finite value > 0 or None", *softcap);
  }
  if (window.has_value()) check.require(*window >= 1, "window", "a value >= 1 or None", *window);
  check.unit_last_stride(q, "q");
}

}  // namespace tokcore::kv_cache
