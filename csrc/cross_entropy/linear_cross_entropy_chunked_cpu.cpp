// Torch-facing CPU entry of linear_cross_entropy_chunked.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "cross_entropy/linear_logits_params.h"

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

  const std::vector<int32_t> active = active_positions(check, arguments, indices, ignore_index);
  const int64_t num_active = static_cast<int64_t>(active.size());
  const int64_t most = min(kStoredPositions, round_up(max(num_active, 1), kFilterTile));
  const int64_t chunk_size = min(workspace_bytes / panel_bytes * kFilterTile, most);
  const bool several_chunks = num_active > chunk_size;

  auto zeros = [&](std::vector<int64_t> sizes, ScalarType type) { return core::zeros_like_on(e, sizes, type); };
  const Tensor loss = zeros({}, ScalarType::Float);
  const Tensor lse = zeros({num_positions}, ScalarType::Float);
  const Tensor logits = zeros({num_positions}, ScalarType::Float);
  const Tensor logit_sum = zeros({smooth_scale.has_value() ? num_positions : 0}, ScalarType::Float);
  const Tensor grad_e =
      make_gradient(e, need_e, num_active == num_positions, {num_positions, e.size(1)}, e.scalar_type());
  const bool sums_c = need_c && several_chunks;
  Tensor grad_c = make_gradient(e, need_c, num_active > 0 && !sums_c, {vocab_size, c.size(1)},
                                sums_c ? ScalarType::Float : c.scalar_type());
  Tensor grad_bias = make_gradient(e, need_bias, false, {vocab_size}, ScalarType::Float);

  if (num_active > 0) {
    const std::optional<Tensor> dense_bias = core::as_contiguous_float(bias);
    const std::optional<Tensor> dense_weight = core::as_contiguous_float(class_weight);
    const std::optional<Tensor> dense_smooth = core::as_contiguous_float(smooth_scale);
    const std::optional<Tensor> dense_square = core::as_contiguous_float(square_scale);
    const Tensor dense_nll = torch::stable::contiguous(nll_scale);
    const Tensor workspace = core::empty_like_on(e, {chunk_size / kFilterTile, panel_bytes / 4}, ScalarType::Float);
    LinearCrossEntropyChunkedParams params = {};
    fill_params(params, arguments, indices, dense_bias, dense_weight, active, false);
    params.nll_scale = core::data_of<float>(dense_nll);
    params.smooth_scale = core::float_data_or_null(dense_smooth);
    params.square_scale = core::float_data_or_null(dense_square);
    params.workspace = core::mutable_data_of<float>(workspace);
    params.chunk_size = chunk_size;
    params.lse = core::mutable_data_of<float>(lse);
    params.logits = core::mutable_data_of<float>(logits);
    params.logit_sum = core::mutable_data_of<float>(logit_sum);
    params.grad_e = need_e ? grad_e.mutable_data_ptr() : nullptr;
    params.grad_c = need_c ? grad_c.mutable_data_ptr() : nullptr;
    params.grad_c_sum = sums_c ? core::mutable_data_of<float>(grad_c) : nullptr;
    params.grad_bias = need_bias ? core::mutable_data_of<float>(grad_bias) : nullptr;
    run_linear_cross_entropy_chunked_cpu(params, core::torch_threads());
    *core::mutable_data_of<float>(loss) = static_cast<float>(params.loss);
  }
  if (sums_c && c.scalar_type() != ScalarType::Float) grad_c = torch::stable::to(grad_c, c.scalar_type());
  if (need_bias && bias->scalar_type() != ScalarType::Float) {
    grad_bias = torch::stable::to(grad_bias, bias->scalar_type());
  }
  return {loss, lse, logits, logit_sum, grad_e, grad_c, grad_bias};
}

}  // namespace
}  // namespace tokcore::cross_entropy

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("linear_cross_entropy_chunked", TORCH_BOX(&tokcore::cross_entropy::linear_cross_entropy_chunked));
}
