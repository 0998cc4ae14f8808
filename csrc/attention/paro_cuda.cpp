// Torch-facing CUDA entries of paro_prepare and paro_attention. Nothing waits for the GPU.
#include <torch/csrc/stable/library.h>

#include "attention/paro_check.h"
#include "core/cuda_scope.h"
#include "tokcore/attention/paro_cuda.h"

namespace tokcore::attention {
namespace {

void check_key_heads(const Checker& check, const char* argument, int64_t num_kv_heads) {
  check.require(num_kv_heads <= kMostParoKeyHeadsCuda, argument,
                "at most " + std::to_string(kMostParoKeyHeadsCuda) + " key heads on CUDA", num_kv_heads);
}

// Codes that begin at a multiple of 16 bytes, as those of paro_prepare do; a view that somebody made is copied.
Tensor aligned(const Tensor& codes) {
  return reinterpret_cast<uintptr_t>(codes.const_data_ptr()) % 16 == 0 ? codes : torch::stable::clone(codes);
}

Prepared paro_prepare(const Tensor& q, const Tensor& k, const Tensor& v, std::vector<int64_t> permutation,
                      std::vector<int64_t> grid, std::vector<int64_t> text, std::optional<Tensor> rope_cos,
                      std::optional<Tensor> rope_sin, std::string rope_pairs, std::string qk, std::string pv,
                      bool smooth_k, bool need_lse) {
  const Checker check("paro_prepare");
  ParoPrepareParams params = {};
  check_prepare(check, q, k, v, {permutation, grid, text, rope_cos, rope_sin, rope_pairs, qk, pv}, params);
  check_key_heads(check, "k", params.shape.num_kv_heads);
  const core::CudaScope scope("paro_prepare", q);
  const PreparedTensors made(q, params, smooth_k, smooth_k && need_lse);
  if (q.numel() > 0) {
    const RotationTables tables(params, rope_cos, rope_sin, rope_pairs == "interleaved");
    made.fill(params);
    const CudaMachine machine = scope.machine();
    const Tensor workspace = core::workspace_like(q, paro_prepare_workspace_cuda(params, machine));
    run_paro_prepare_cuda(params, {machine, workspace.mutable_data_ptr(), scope.stream()});
  }
  return made.all();
}

std::tuple<Tensor, Tensor> paro_attention(const Tensor& q_codes, const Tensor& q_scale, const Tensor& k_codes,
                                          const Tensor& k_scale, const Tensor& v_codes, const Tensor& v_scale,
                                          const Tensor& mean_score, const Tensor& mask_bits,
                                          std::vector<int64_t> permutation, std::vector<int64_t> grid,
                                          std::vector<int64_t> text, int64_t block_m, int64_t block_n, int64_t head_dim,
                                          double scale, ScalarType out_dtype, std::string qk, std::string pv,
                                          bool need_lse) {
  const Checker check("paro_attention");
  const AttentionArguments arguments = {q_codes,    q_scale,   k_codes,     k_scale,   v_codes, v_scale,
                                        mean_score, mask_bits, permutation, grid,      text,    block_m,
                                        block_n,    head_dim,  scale,       out_dtype, qk,      pv};
  ParoAttentionParams params = {};
  check_attention(check, arguments, params);
  check_key_heads(check, "k_codes", params.shape.num_kv_heads);
  const core::CudaScope scope("paro_attention", q_codes);
  const AttendedTensors made(q_codes, params.shape, out_dtype, need_lse);
  if (made.out.numel() > 0) {
    const Tensor dense_bits = torch::stable::contiguous(mask_bits);
    const Tensor q = aligned(q_codes), k = aligned(k_codes), v = aligned(v_codes);
    params.mask = mask_view(dense_bits, block_m, block_n);
    params.q_codes = q.const_data_ptr();
    params.k_codes = k.const_data_ptr();
    params.v_codes = v.const_data_ptr();
    made.fill(params);
    const CudaMachine machine = scope.machine();
    const Tensor workspace = core::workspace_like(q_codes, paro_attention_workspace_cuda(params, machine));
    run_paro_attention_cuda(params, {machine, workspace.mutable_data_ptr(), scope.stream()});
  }
  return {made.out, made.lse};
}

}  // namespace
}  // namespace tokcore::attention

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) {
  m.impl("paro_prepare", TORCH_BOX(&tokcore::attention::paro_prepare));
  m.impl("paro_attention", TORCH_BOX(&tokcore::attention::paro_attention));
}
