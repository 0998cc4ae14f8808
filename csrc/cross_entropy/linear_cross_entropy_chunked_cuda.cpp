// Torch-facing CUDA entry of linear_cross_entropy_chunked. Nothing waits for the GPU.
#include <torch/csrc/stable/library.h>

#include "cross_entropy/linear_logits_cuda_params.h"

namespace tokcore::cross_entropy {
namespace {

using ChunkedResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

ChunkedResult linear_cross_entropy_chunked(const Tensor& e, const Tensor& c, const Tensor& targets,
                                           const Tensor& nll_scale, std::optional<Tensor> smooth_scale,
                                           std::optional<Tensor> square_scale, std::optional<Tensor> bias,
                                           std::optional<Tensor> class_weight, std::optional<int64_t> ignore_index,
                                           int64_t seq_len, int64_t shift, std::optional<double> softcap,
                                           double temperature, int64_t workspace_bytes, bool need_e, bool need_c,
                                           bool need_bias) {
  const Checker check("linear_cross_entropy_chunked");
  check.rank(targets, "targets", 1);
  const Tensor indices = torch::stable::unsqueeze(torch::stable::contiguous(targets), 1);
  const LogitsArguments arguments{e,     c,       indices,     bias,         class_weight, seq_len,
                                  shift, softcap, temperature, std::nullopt, "targets"};
  std::vector<PositionArgument> vectors = {{"nll_scale", &nll_scale, false}};
  if (smooth_scale.has_value()) vectors.push_back({"smooth_scale", &*smooth_scale, false});
  if (square_scale.has_value()) vectors.push_back({"square_scale", &*square_scale, false});
  check_arguments(check, arguments, 0, vectors);
  check.require(!need_bias || bias.has_value(), "bias", "a Tensor with need_bias", "None");
  const int64_t num_positions = e.size(0), vocab_size = c.size(0);
  const int64_t panel_bytes = round_up(vocab_size, kFilterTile) * kFilterTile * static_cast<int64_t>(sizeof(float));
  check.require(workspace_bytes >= panel_bytes, "workspace_bytes", "at least " + std::to_string(panel_bytes),
                workspace_bytes);
  const core::CudaScope scope("linear_cross_entropy_chunked", e);
  const CudaMachine machine = scope.machine();

  // Chunks are of all positions: how many are active is known on the device only.
  const int64_t most = round_up(max(num_positions, 1), kFilterTile);
  const int64_t chunk_size = min(workspace_bytes / panel_bytes * kFilterTile, most);
  const bool sums_c = need_c && num_positions > chunk_size;

  auto zeros = [&](std::vector<int64_t> sizes) { return core::zeros_like_on(e, sizes, ScalarType::Float); };
  const Tensor loss = core::empty_like_on(e, {}, ScalarType::Float);
  const Tensor lse = zeros({num_positions}), logits = zeros({num_positions});
  const Tensor logit_sum = zeros({smooth_scale.has_value() ? num_positions : 0});
  const Tensor grad_e = make_output(e, need_e, {num_positions, e.size(1)}, e.scalar_type());
  const Tensor grad_c = make_output(e, need_c, {vocab_size, c.size(1)}, c.scalar_type());
  const Tensor grad_c_sum = make_output(e, sums_c, {vocab_size, c.size(1)}, ScalarType::Float);
  Tensor grad_bias = make_output(e, need_bias, {vocab_size}, ScalarType::Float);

  const std::optional<Tensor> dense_bias = core::as_contiguous_float(bias);
  const std::optional<Tensor> dense_weight = core::as_contiguous_float(class_weight);
  const std::optional<Tensor> dense_smooth = core::as_contiguous_float(smooth_scale);
  const std::optional<Tensor> dense_square = core::as_contiguous_float(square_scale);
  const Tensor dense_nll = torch::stable::contiguous(nll_scale);
  const Tensor stored = core::empty_like_on(e, {chunk_size / kFilterTile, panel_bytes / 4}, ScalarType::Float);
  LinearCrossEntropyChunkedParams params = {};
  fill_params(params, arguments, indices, dense_bias, dense_weight, false);
  params.nll_scale = core::data_of<float>(dense_nll);
  params.smooth_scale = core::float_data_or_null(dense_smooth);
  params.square_scale = core::float_data_or_null(dense_square);
  params.workspace = core::mutable_data_of<float>(stored);
  params.chunk_size = chunk_size;
  params.lse = core::mutable_data_of<float>(lse);
  params.logits = core::mutable_data_of<float>(logits);
  params.logit_sum = core::mutable_data_of<float>(logit_sum);
  params.grad_e = need_e ? grad_e.mutable_data_ptr() : nullptr;
  params.grad_c = need_c ? grad_c.mutable_data_ptr() : nullptr;
  params.grad_c_sum = sums_c ? core::mutable_data_of<float>(grad_c_sum) : nullptr;
  params.grad_bias = need_bias ? core::mutable_data_of<float>(grad_bias) : nullptr;
  const Tensor workspace = core::workspace_like(e, linear_cross_entropy_chunked_workspace_cuda(params, machine));
  run_linear_cross_entropy_chunked_cuda(params, {ignore_index, seq_len}, core::mutable_data_of<float>(loss),
                                        {machine, workspace.mutable_data_ptr(), scope.stream()});
  if (need_bias && bias->scalar_type() != ScalarType::Float) {
    grad_bias = torch::stable::to(grad_bias, bias->scalar_type());
  }
  return {loss, lse, logits, logit_sum, grad_e, grad_c, grad_bias};
}

}  // namespace
}  // namespace tokcore::cross_entropy

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) {
  m.impl("linear_cross_entropy_chunked", TORCH_BOX(&tokcore::cross_entropy::linear_cross_entropy_chunked));
}
