// Validation of kv_quantize and kv_dequantize, shared by the backends: dtype, device, rank, shape, range, strides, in
// that order. python/tokcore/ops/_kv_checks.py says the same of fake tensors.
#pragma once

#include <string>

#include "core/tensors.h"
#include "tokcore/kv_cache/kv_quantize.h"

namespace tokcore::kv_cache {

using core::Checker;
using core::ScalarType;
using core::Tensor;

inline bool is_real(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half;
}
inline void check_real(const Checker& check, const char* argument, ScalarType type) {
  check.require(is_real(type), argument, "dtype float32 or bfloat16 or float16", core::dtype_name(type));
}

inline void check_channel_scale_type(const Checker& check, const char* argument, const std::optional<Tensor>& scale,
                                     const Tensor& other, const char* other_name) {
  if (!scale.has_value()) return;
  check.dtype(*scale, argument, ScalarType::Float);
  check.same_device(*scale, argument, other, other_name);
}

inline void check_bits(const Checker& check, int64_t bits) {
  check.require(bits == 8 || bits == 4 || bits == 2, "bits", "8, 4 or 2", bits);
}
inline void check_axis(const Checker& check, const std::string& axis, const char* argument = "axis") {
  check.require(axis == "token" || axis == "channel", argument, "'token' or 'channel'", "'" + axis + "'");
}

struct CodesArguments {
  int64_t num_items, num_tokens, head_dim, bits;
  const std::string& axis;
  int64_t group;
  const std::optional<Tensor>& channel_scale;
  bool rotates;
  const char* shaped;  // the argument that the sizes come from
};

// Ranges, of sizes that are already known to be consistent.
inline void check_codes(const Checker& check, const CodesArguments& a) {
  check_bits(check, a.bits);
  check_axis(check, a.axis);
  const int64_t per_byte = codes_per_byte(static_cast<int>(a.bits));
  check.require(a.head_dim % per_byte == 0 && a.head_dim > 0, a.shaped,
                "D a positive multiple of " + std::to_string(per_byte) + " (codes in a byte)", a.head_dim);
  const int64_t extent = a.axis == "token" ? a.head_dim : a.num_tokens;
  const std::string of = a.axis == "token" ? " (D)" : " (N)";
  check.require(a.group >= 1 && extent % a.group == 0, "group", "a positive divisor of " + std::to_string(extent) + of,
                a.group);
  if (a.rotates) {
    check.require(is_power_of_two(a.head_dim), "rotate", "False unless D is a power of two",
                  "D = " + std::to_string(a.head_dim));
  }
}

inline void check_channel_scale_shape(const Checker& check, const std::optional<Tensor>& scale, int64_t num_items,
                                      int64_t head_dim) {
  if (!scale.has_value()) return;
  check.rank(*scale, "channel_scale", 2);
  const int64_t rows = scale->size(0);
  check.require(rows >= 1 && num_items % rows == 0 && scale->size(1) == head_dim, "channel_scale",
                "shape [C, " + std::to_string(head_dim) + "] with C a divisor of " + std::to_string(num_items),
                core::shape_of(*scale));
}

// A division by what is not finite and positive would lose the numbers for good.
inline void check_channel_scale_values(const Checker& check, const char* argument, const float* scale, int64_t rows,
                                       int64_t head_dim) {
  for (int64_t i = 0; i < rows * head_dim; ++i) {
    if (scale[i] > 0.0f && std::isfinite(scale[i])) continue;
    std::ostringstream got;
    got << scale[i] << " at [" << i / head_dim << ", " << i % head_dim << "]";
    check.fail(argument, "finite values > 0", got.str());
  }
}

inline std::vector<int64_t> scale_shape(const CodesArguments& a) {
  if (a.axis == "token") return {a.num_items, a.num_tokens, a.head_dim / a.group};
  return {a.num_items, a.num_tokens / a.group, a.head_dim};
}

inline void fill_codes_params(KvCodesParams& params, const CodesArguments& a, bool symmetric,
                              const std::optional<Tensor>& channel_scale) {
  params.scheme = {.bits = static_cast<int>(a.bits),
                   .axis = a.axis == "token" ? QuantAxis::kToken : QuantAxis::kChannel,
                   .group = a.group,
                   .symmetric = symmetric};
  params.num_items = a.num_items;
  params.num_tokens = a.num_tokens;
  params.head_dim = a.head_dim;
  params.rotates = a.rotates;
  params.channel_scale = core::float_data_or_null(channel_scale);
  params.num_channel_scales = channel_scale.has_value() ? channel_scale->size(0) : 1;
}

}  // namespace tokcore::kv_cache
