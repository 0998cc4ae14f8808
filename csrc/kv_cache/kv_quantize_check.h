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

// ---- the two ops, for either backend -------------------------------------------------------------------------------

inline CodesArguments check_quantize(const Checker& check, const Tensor& x, int64_t bits, const std::string& axis,
                                     int64_t group, const std::optional<Tensor>& channel_scale, bool rotate) {
  check_real(check, "x", x.scalar_type());
  check_channel_scale_type(check, "channel_scale", channel_scale, x, "x");
  check.rank(x, "x", 3);
  const CodesArguments a{x.size(0), x.size(1), x.size(2), bits, axis, group, channel_scale, rotate, "x"};
  check_channel_scale_shape(check, channel_scale, a.num_items, a.head_dim);
  check_codes(check, a);
  check.unit_last_stride(x, "x");
  return a;
}

struct QuantizedTensors {
  Tensor packed, scale, zero;
};
inline QuantizedTensors allocate_quantized(const Tensor& x, const CodesArguments& a, bool symmetric) {
  const int64_t row_bytes = code_bytes(a.head_dim, static_cast<int>(a.bits));
  const std::vector<int64_t> scales = scale_shape(a);
  return {core::empty_like_on(x, {a.num_items, a.num_tokens, row_bytes}, ScalarType::Byte),
          core::empty_like_on(x, scales, ScalarType::BFloat16),
          core::empty_like_on(x, symmetric ? std::vector<int64_t>{0} : scales, ScalarType::BFloat16)};
}
inline KvQuantizeParams quantize_params(const Tensor& x, const CodesArguments& a, bool symmetric,
                                        const std::optional<Tensor>& dense_scale, const QuantizedTensors& made) {
  KvQuantizeParams params = {};
  fill_codes_params(params, a, symmetric, dense_scale);
  params.dtype = core::to_dtype(x.scalar_type());
  params.x = x.const_data_ptr();
  params.stride_item = x.stride(0);
  params.stride_token = x.stride(1);
  params.packed = core::mutable_data_of<uint8_t>(made.packed);
  params.scale = core::mutable_data_of<BFloat16>(made.scale);
  params.zero = symmetric ? nullptr : core::mutable_data_of<BFloat16>(made.zero);
  return params;
}

inline CodesArguments check_dequantize(const Checker& check, const Tensor& packed, const Tensor& scale,
                                       const Tensor& zero, int64_t bits, const std::string& axis, int64_t group,
                                       bool symmetric, const std::optional<Tensor>& channel_scale, bool rotate,
                                       ScalarType dtype) {
  check.dtype(packed, "packed", ScalarType::Byte);
  check.dtype(scale, "scale", ScalarType::BFloat16);
  check.dtype(zero, "zero", ScalarType::BFloat16);
  check_real(check, "dtype", dtype);
  check.same_device(scale, "scale", packed, "packed");
  check.same_device(zero, "zero", packed, "packed");
  check_channel_scale_type(check, "channel_scale", channel_scale, packed, "packed");
  check.rank(packed, "packed", 3);
  check_bits(check, bits);
  check_axis(check, axis);
  const int64_t head_dim = packed.size(2) * codes_per_byte(static_cast<int>(bits));
  const CodesArguments a{packed.size(0), packed.size(1), head_dim, bits, axis, group, channel_scale, rotate, "packed"};
  check_codes(check, a);
  check.shape(scale, "scale", scale_shape(a), axis == "token" ? "[M, N, D/group]" : "[M, N/group, D]");
  check.shape(zero, "zero", symmetric ? std::vector<int64_t>{0} : scale_shape(a),
              symmetric ? "empty when symmetric" : "shape of scale");
  check_channel_scale_shape(check, channel_scale, a.num_items, head_dim);
  return a;
}

// Contiguous codes, kept while a kernel reads them.
struct DenseCodes {
  Tensor packed, scale, zero;
  std::optional<Tensor> channel_scale;
  DenseCodes(const Tensor& packed_, const Tensor& scale_, const Tensor& zero_, const std::optional<Tensor>& channels)
      : packed(torch::stable::contiguous(packed_)),
        scale(torch::stable::contiguous(scale_)),
        zero(torch::stable::contiguous(zero_)),
        channel_scale(core::as_contiguous_float(channels)) {}
};
inline KvDequantizeParams dequantize_params(const DenseCodes& dense, const CodesArguments& a, bool symmetric,
                                            const Tensor& x) {
  KvDequantizeParams params = {};
  fill_codes_params(params, a, symmetric, dense.channel_scale);
  params.packed = core::data_of<uint8_t>(dense.packed);
  params.scale = core::data_of<BFloat16>(dense.scale);
  params.zero = symmetric ? nullptr : core::data_of<BFloat16>(dense.zero);
  params.dtype = core::to_dtype(x.scalar_type());
  params.x = x.mutable_data_ptr();
  return params;
}

}  // namespace tokcore::kv_cache
