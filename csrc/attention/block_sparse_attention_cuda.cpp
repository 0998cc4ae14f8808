// Torch-facing CUDA entries of block_sparse_attention_forward and block_sparse_attention_backward. Nothing waits for
// the GPU.
#include <torch/csrc/stable/library.h>

#include "attention/block_sparse_attention_check.h"
#include "core/cuda_scope.h"
#include "tokcore/attention/attention_cuda.h"

namespace tokcore::attention {
namespace {

std::tuple<Tensor, Tensor> block_sparse_attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                          const Tensor& mask_bits, int64_t block_m, int64_t block_n,
                                                          double scale, bool causal) {
  const Checker check("block_sparse_attention_forward");
  check_arguments(check, q, k, v, mask_bits, block_m, block_n, scale, {});
  const core::CudaScope scope("block_sparse_attention_forward", q);
  const Tensor out = core::empty_like_on(q, {q.size(0), q.size(1), q.size(2), q.size(3)}, q.scalar_type());
  const Tensor lse = core::empty_like_on(q, {q.size(0), q.size(1), q.size(2)}, ScalarType::Float);
  if (out.numel() > 0) {
    const Tensor dense_bits = torch::stable::contiguous(mask_bits);
    BlockSparseAttentionForwardParams params = {};
    fill_params(params, q, k, v, dense_bits, block_m, block_n, scale, causal);
    params.out = out.mutable_data_ptr();
    params.lse = core::mutable_data_of<float>(lse);
    const CudaMachine machine = scope.machine();
    const Tensor workspace = core::workspace_like(q, block_sparse_attention_forward_workspace_cuda(params, machine));
    run_block_sparse_attention_forward_cuda(params, {machine, workspace.mutable_data_ptr(), scope.stream()});
  }
  return {out, lse};
}

Tensor make_gradient(const Tensor& like, bool needed) {
  if (!needed) return core::empty_like_on(like, {0}, like.scalar_type());
  return core::empty_like_on(like, {like.size(0), like.size(1), like.size(2), like.size(3)}, like.scalar_type());
}

std::tuple<Tensor, Tensor, Tensor> block_sparse_attention_backward(const Tensor& grad_out, const Tensor& q,
                                                                   const Tensor& k, const Tensor& v, const Tensor& out,
                                                                   const Tensor& lse, const Tensor& mask_bits,
                                                                   int64_t block_m, int64_t block_n,
                                                                   std::optional<Tensor> grad_lse, double scale,
                                                                   bool causal, bool need_q, bool need_k, bool need_v) {
  const Checker check("block_sparse_attention_backward");
  std::vector<QueryTensor> further = {
      {"grad_out", &grad_out, false, true}, {"out", &out, false, true}, {"lse", &lse, true, false}};
  if (grad_lse.has_value()) further.push_back({"grad_lse", &*grad_lse, true, false});
  check_arguments(check, q, k, v, mask_bits, block_m, block_n, scale, further);
  const core::CudaScope scope("block_sparse_attention_backward", q);
  const Tensor grad_q = make_gradient(q, need_q);
  const Tensor grad_k = make_gradient(k, need_k);
  const Tensor grad_v = make_gradient(v, need_v);
  if (grad_q.numel() > 0 || grad_k.numel() > 0 || grad_v.numel() > 0) {
    const Tensor dense_bits = torch::stable::contiguous(mask_bits), dense_lse = torch::stable::contiguous(lse);
    const std::optional<Tensor> dense_grad_lse = core::as_contiguous_float(grad_lse);
    BlockSparseAttentionBackwardParams params = {};
    fill_params(params, q, k, v, dense_bits, block_m, block_n, scale, causal);
    params.grad_out = heads_view(grad_out);
    params.out = heads_view(out);
    params.lse = core::data_of<float>(dense_lse);
    params.grad_lse = core::float_data_or_null(dense_grad_lse);
    params.grad_q = grad_q.numel() > 0 ? grad_q.mutable_data_ptr() : nullptr;
    params.grad_k = grad_k.numel() > 0 ? grad_k.mutable_data_ptr() : nullptr;
    params.grad_v = grad_v.numel() > 0 ? grad_v.mutable_data_ptr() : nullptr;
    const CudaMachine machine = scope.machine();
    const Tensor workspace = core::workspace_like(q, block_sparse_attention_backward_workspace_cuda(params, machine));
    run_block_sparse_attention_backward_cuda(params, {machine, workspace.mutable_data_ptr(), scope.stream()});
  }
  return {grad_q, grad_k, grad_v};
}

}  // namespace
}  // namespace tokcore::attention

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) {
  m.impl("block_sparse_attention_forward", TORCH_BOX(&tokcore::attention::block_sparse_attention_forward));
  m.impl("block_sparse_attention_backward", TORCH_BOX(&tokcore::attention::block_sparse_attention_backward));
}
