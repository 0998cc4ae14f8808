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

}  // namespace
}  // namespace tokcore::attention

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) {
  m.impl("block_sparse_attention_forward", TORCH_BOX(&tokcore::attention::block_sparse_attention_forward));
}
