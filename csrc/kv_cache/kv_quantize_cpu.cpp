// Torch-facing CPU entries of kv_quantize and kv_dequantize.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "kv_cache/kv_quantize_check.h"

namespace tokcore::kv_cache {
namespace {

std::tuple<Tensor, Tensor, Tensor> kv_quantize(const Tensor& x, int64_t bits, std::string axis, int64_t group,
                                               bool symmetric, std::optional<Tensor> channel_scale, bool rotate) {
  const Checker check("kv_quantize");
  check_real(check, "x", x.scalar_type());
  check_channel_scale_type(check, "channel_scale", channel_scale, x, "x");
  check.rank(x, "x", 3);
  const CodesArguments a{x.size(0), x.size(1), x.size(2), bits, axis, group, channel_scale, rotate, "x"};
  check_channel_scale_shape(check, channel_scale, a.num_items, a.head_dim);
  check_codes(check, a);
  check.unit_last_stride(x, "x");
  const std::optional<Tensor> dense_scale = core::as_contiguous_float(channel_scale);
  if (dense_scale.has_value()) {
    check_channel_scale_values(check, "channel_scale", core::data_of<float>(*dense_scale), dense_scale->size(0),
                               a.head_dim);
  }

  const Tensor packed = core::empty_like_on(
      x, {a.num_items, a.num_tokens, code_bytes(a.head_dim, static_cast<int>(bits))}, ScalarType::Byte);
  const Tensor scale = core::empty_like_on(x, scale_shape(a), ScalarType::BFloat16);
  const Tensor zero =
      core::empty_like_on(x, symmetric ? std::vector<int64_t>{0} : scale_shape(a), ScalarType::BFloat16);
  if (x.numel() > 0) {
    KvQuantizeParams params = {};
    fill_codes_params(params, a, symmetric, dense_scale);
    params.dtype = core::to_dtype(x.scalar_type());
    params.x = x.const_data_ptr();
    params.stride_item = x.stride(0);
    params.stride_token = x.stride(1);
    params.packed = core::mutable_data_of<uint8_t>(packed);
    params.scale = core::mutable_data_of<BFloat16>(scale);
    params.zero = symmetric ? nullptr : core::mutable_data_of<BFloat16>(zero);
    run_kv_quantize_cpu(params, core::torch_threads());
  }
  return {packed, scale, zero};
}

Tensor kv_dequantize(const Tensor& packed, const Tensor& scale, const Tensor& zero, int64_t bits, std::string axis,
                     int64_t group, bool symmetric, std::optional<Tensor> channel_scale, bool rotate,
                     ScalarType dtype) {
  const Checker check("kv_dequantize");
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

  const Tensor x = core::empty_like_on(packed, {a.num_items, a.num_tokens, head_dim}, dtype);
  if (x.numel() > 0) {
    const std::optional<Tensor> dense_channel_scale = core::as_contiguous_float(channel_scale);
    const Tensor dense_packed = torch::stable::contiguous(packed);
    const Tensor dense_scale = torch::stable::contiguous(scale), dense_zero = torch::stable::contiguous(zero);
    KvDequantizeParams params = {};
    fill_codes_params(params, a, symmetric, dense_channel_scale);
    params.packed = core::data_of<uint8_t>(dense_packed);
    params.scale = core::data_of<BFloat16>(dense_scale);
    params.zero = symmetric ? nullptr : core::data_of<BFloat16>(dense_zero);
    params.dtype = core::to_dtype(dtype);
    params.x = x.mutable_data_ptr();
    run_kv_dequantize_cpu(params, core::torch_threads());
  }
  return x;
}

}  // namespace
}  // namespace tokcore::kv_cache

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("kv_quantize", TORCH_BOX(&tokcore::kv_cache::kv_quantize));
  m.impl("kv_dequantize", TORCH_BOX(&tokcore::kv_cache::kv_dequantize));
}
