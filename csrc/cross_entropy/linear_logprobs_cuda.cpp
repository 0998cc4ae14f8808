// Torch-facing CUDA entries of linear_logprobs_forward and linear_logprobs_backward. Nothing waits for the GPU.
#include <torch/csrc/stable/library.h>

#include "cross_entropy/linear_logits_cuda_params.h"

namespace tokcore::cross_entropy {
namespace {

using ForwardResult = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

ForwardResult linear_logprobs_forward(const Tensor& e, const Tensor& c, const Tensor& indices,
                                      std::optional<Tensor> bias, std::optional<Tensor> class_weight,
                                      std::optional<int64_t> ignore_index, int64_t seq_len, int64_t shift,
                                      std::optional<double> softcap, double temperature, bool entropy, bool logit_sum,
                                      int64_t topk, std::optional<double> filter_eps,
                                      std::optional<int64_t> workspace_bytes) {
  const Checker check("linear_logprobs_forward");
  const LogitsArguments arguments{e, c, indices, bias, class_weight, seq_len, shift, softcap, temperature, filter_eps};
  check_arguments(check, arguments, topk, {});
  const core::CudaScope scope("linear_logprobs_forward", e);
  const CudaMachine machine = scope.machine();

  const int64_t num_positions = e.size(0), vocab_size = c.size(0), num_indices = indices.size(1);
  auto zeros = [&](std::vector<int64_t> sizes, ScalarType type) { return core::zeros_like_on(e, sizes, type); };
  const int64_t kept_words = filter_eps.has_value() ? ceil_div(num_positions, kFilterTile) : 0;
  const int64_t kept_tiles = filter_eps.has_value() ? ceil_div(vocab_size, kFilterTile) : 0;
  // Positions that are not active keep what is put here.
  const Tensor lse = zeros({num_positions}, ScalarType::Float);
  const Tensor entropies = zeros({entropy ? num_positions : 0}, ScalarType::Float);
  const Tensor gathered = zeros({num_positions, num_indices}, ScalarType::Float);
  const Tensor logit_sums = zeros({logit_sum ? num_positions : 0}, ScalarType::Float);
  const Tensor topk_values = zeros({num_positions, topk}, ScalarType::Float);
  Tensor topk_indices = core::empty_like_on(e, {num_positions, topk}, ScalarType::Long);
  torch::stable::fill_(topk_indices, -1);
  const Tensor kept = core::empty_like_on(e, {kept_tiles, kept_words}, ScalarType::Int);

  const Tensor dense_indices = torch::stable::contiguous(indices);
  const std::optional<Tensor> dense_bias = core::as_contiguous_float(bias);
  const std::optional<Tensor> dense_weight = core::as_contiguous_float(class_weight);
  LinearLogprobsForwardParams params = {};
  fill_params(params, arguments, dense_indices, dense_bias, dense_weight, entropy);
  params.wants_entropy = entropy;
  params.wants_logit_sum = logit_sum;
  params.topk = topk;
  params.lse = core::mutable_data_of<float>(lse);
  params.entropy = core::mutable_data_of<float>(entropies);
  params.gathered = core::mutable_data_of<float>(gathered);
  params.logit_sum = core::mutable_data_of<float>(logit_sums);
  params.topk_values = core::mutable_data_of<float>(topk_values);
  params.topk_indices = core::mutable_data_of<int64_t>(topk_indices);
  params.kept = filter_eps.has_value() ? core::mutable_data_of<uint32_t>(kept) : nullptr;
  params.kept_words = kept_words;
  if (workspace_bytes.has_value()) {
    LinearLogprobsBackwardParams backward = {};
    static_cast<LinearLogitsParams&>(backward) = params;
    backward.grad_e = backward.grad_c = params.lse;  // all asked for, none written here
    backward.grad_bias = bias.has_value() ? params.lse : nullptr;
    backward.grad_sum = logit_sum ? params.lse : nullptr;
    backward.kept = params.kept;
    backward.kept_words = kept_words;
    check_workspace(check, backward, *workspace_bytes, machine);
  }
  const Tensor workspace = core::workspace_like(e, linear_logprobs_forward_workspace_cuda(params, machine));
  run_linear_logprobs_forward_cuda(params, {ignore_index, seq_len},
                                   {machine, workspace.mutable_data_ptr(), scope.stream()});
  return {lse, entropies, gathered, logit_sums, topk_values, topk_indices, kept};
}

using BackwardResult = std::tuple<Tensor, Tensor, Tensor>;

BackwardResult linear_logprobs_backward(const Tensor& e, const Tensor& c, const Tensor& indices, const Tensor& logits,
                                        const Tensor& lse, const Tensor& kept, const Tensor& grad_prob,
                                        const Tensor& grad_logits, std::optional<Tensor> grad_plogp,
                                        std::optional<Tensor> grad_sum, std::optional<Tensor> bias,
                                        std::optional<Tensor> class_weight, std::optional<int64_t> ignore_index,
                                        int64_t seq_len, int64_t shift, std::optional<double> softcap,
                                        double temperature, std::optional<double> filter_eps,
                                        std::optional<int64_t> workspace_bytes, bool need_e, bool need_c,
                                        bool need_bias) {
  const Checker check("linear_logprobs_backward");
  const LogitsArguments arguments{e, c, indices, bias, class_weight, seq_len, shift, softcap, temperature, filter_eps};
  std::vector<PositionArgument> vectors = {{"logits", &logits, true},
                                           {"lse", &lse, false},
                                           {"grad_prob", &grad_prob, false},
                                           {"grad_logits", &grad_logits, true}};
  if (grad_plogp.has_value()) vectors.push_back({"grad_plogp", &*grad_plogp, false});
  if (grad_sum.has_value()) vectors.push_back({"grad_sum", &*grad_sum, false});
  check_arguments(check, arguments, 0, vectors);
  const bool filters = filter_eps.has_value();
  if (filters) {
    check.dtype(kept, "kept", ScalarType::Int);
    check.shape(kept, "kept", {ceil_div(c.size(0), kFilterTile), ceil_div(e.size(0), kFilterTile)},
                "[V/32, T/32] rounded up");
  }
  check.require(!need_bias || bias.has_value(), "bias", "a Tensor with need_bias", "None");
  if (filters && grad_sum.has_value() && softcap.has_value()) {
    check.fail("filter_eps",
               "None when softcap and grad_sum are given: the uniform term is then no rank-one correction",
               *filter_eps);
  }
  const core::CudaScope scope("linear_logprobs_backward", e);
  const CudaMachine machine = scope.machine();

  const Tensor grad_e = make_output(e, need_e, {e.size(0), e.size(1)}, e.scalar_type());
  const Tensor grad_c = make_output(e, need_c, {c.size(0), c.size(1)}, c.scalar_type());
  const ScalarType bias_type = bias.has_value() ? bias->scalar_type() : e.scalar_type();
  Tensor grad_bias = make_output(e, need_bias, {c.size(0)}, ScalarType::Float);

  const Tensor dense_indices = torch::stable::contiguous(indices);
  const std::optional<Tensor> dense_bias = core::as_contiguous_float(bias);
  const std::optional<Tensor> dense_weight = core::as_contiguous_float(class_weight);
  const std::optional<Tensor> dense_plogp = core::as_contiguous_float(grad_plogp);
  const std::optional<Tensor> dense_sum = core::as_contiguous_float(grad_sum);
  const Tensor dense_logits = torch::stable::contiguous(logits), dense_lse = torch::stable::contiguous(lse);
  const Tensor dense_prob = torch::stable::contiguous(grad_prob);
  const Tensor dense_grad_logits = torch::stable::contiguous(grad_logits);
  const Tensor dense_kept = torch::stable::contiguous(kept);
  LinearLogprobsBackwardParams params = {};
  fill_params(params, arguments, dense_indices, dense_bias, dense_weight, grad_plogp.has_value());
  params.logits = core::data_of<float>(dense_logits);
  params.lse = core::data_of<float>(dense_lse);
  params.grad_prob = core::data_of<float>(dense_prob);
  params.grad_plogp = core::float_data_or_null(dense_plogp);
  params.grad_sum = core::float_data_or_null(dense_sum);
  params.grad_logits = core::data_of<float>(dense_grad_logits);
  params.kept = filters ? core::data_of<uint32_t>(dense_kept) : nullptr;
  params.kept_words = filters ? kept.size(1) : 0;
  params.grad_e = need_e ? grad_e.mutable_data_ptr() : nullptr;
  params.grad_c = need_c ? grad_c.mutable_data_ptr() : nullptr;
  params.grad_bias = need_bias ? core::mutable_data_of<float>(grad_bias) : nullptr;
  if (workspace_bytes.has_value()) {
    check_workspace(check, params, *workspace_bytes, machine);
    params.workspace_bytes = *workspace_bytes;
  }
  const Tensor workspace = core::workspace_like(e, linear_logprobs_backward_workspace_cuda(params, machine));
  run_linear_logprobs_backward_cuda(params, {ignore_index, seq_len},
                                    {machine, workspace.mutable_data_ptr(), scope.stream()});
  if (need_bias && bias_type != ScalarType::Float) grad_bias = torch::stable::to(grad_bias, bias_type);
  return {grad_e, grad_c, grad_bias};
}

}  // namespace
}  // namespace tokcore::cross_entropy

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) {
  m.impl("linear_logprobs_forward", TORCH_BOX(&tokcore::cross_entropy::linear_logprobs_forward));
  m.impl("linear_logprobs_backward", TORCH_BOX(&tokcore::cross_entropy::linear_logprobs_backward));
}
