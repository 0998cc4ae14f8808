// Torch-facing CUDA entries of kv_quantize and kv_dequantize. Nothing waits for the GPU.
#include "tokcore/kv_cache/kv_quantize_cuda.h"

#include <torch/csrc/stable/library.h>

#include "core/cuda_scope.h"
#include "kv_cache/kv_quantize_check.h"

namespace tokcore::kv_cache {
namespace {

void check_channels(const Checker& check, const char* argument, int64_t head_dim) {
  check.require(head_dim <= kMostQuantizedChannelsCuda, argument,
                "D <= " + std::to_string(kMostQuantizedChannelsCuda) + " on CUDA", head_dim);
}

std::tuple<Tensor, Tensor, Tensor> kv_quantize(const Tensor& x, int64_t bits, std::string axis, int64_t group,
                                               bool symmetric, std::optional<Tensor> channel_scale, bool rotate) {
  const Checker check("kv_quantize");
  const CodesArguments a = check_quantize(check, x, bits, axis, group, channel_scale, rotate);
  check_channels(check, "x", a.head_dim);
  const core::CudaScope scope("kv_quantize", x);
  const std::optional<Tensor> dense_scale = core::as_contiguous_float(channel_scale);
  const QuantizedTensors made = allocate_quantized(x, a, symmetric);
  if (x.numel() > 0) run_kv_quantize_cuda(quantize_params(x, a, symmetric, dense_scale, made), scope.stream());
  return {made.packed, made.scale, made.zero};
}

Tensor kv_dequantize(const Tensor& packed, const Tensor& scale, const Tensor& zero, int64_t bits, std::string axis,
                     int64_t group, bool symmetric, std::optional<Tensor> channel_scale, bool rotate,
                     ScalarType dtype) {
  const Checker check("kv_dequantize");
  const CodesArguments a =
      check_dequantize(check, packed, scale, zero, bits, axis, group, symmetric, channel_scale, rotate, dtype);
  check_channels(check, "packed", a.head_dim);
  const core::CudaScope scope("kv_dequantize", packed);
  const Tensor x = core::empty_like_on(packed, {a.num_items, a.num_tokens, a.head_dim}, dtype);
  if (x.numel() > 0) {
    const DenseCodes dense(packed, scale, zero, channel_scale);
    run_kv_dequantize_cuda(dequantize_params(dense, a, symmetric, x), scope.stream());
  }
  return x;
}

}  // namespace
}  // namespace tokcore::kv_cache

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) {
  m.impl("kv_quantize", TORCH_BOX(&tokcore::kv_cache::kv_quantize));
  m.impl("kv_dequantize", TORCH_BOX(&tokcore::kv_cache::kv_dequantize));
}
