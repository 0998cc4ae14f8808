// Torch-facing CPU entries of paro_prepare and paro_attention.
#include <torch/csrc/stable/library.h>

#include "attention/paro_check.h"
#include "core/threads.h"
#include "tokcore/cpu/scratch.h"

namespace tokcore::attention {
namespace {

Prepared paro_prepare(const Tensor& q, const Tensor& k, const Tensor& v, std::vector<int64_t> permutation,
                      std::vector<int64_t> grid, std::vector<int64_t> text, std::optional<Tensor> rope_cos,
                      std::optional<Tensor> rope_sin, std::string rope_pairs, std::string qk, std::string pv,
                      bool smooth_k, bool need_lse) {
  const Checker check("paro_prepare");
  ParoPrepareParams params = {};
  check_prepare(check, q, k, v, {permutation, grid, text, rope_cos, rope_sin, rope_pairs, qk, pv}, params);
  const PreparedTensors made(q, params, smooth_k, smooth_k && need_lse);
  if (q.numel() > 0) {
    const RotationTables tables(params, rope_cos, rope_sin, rope_pairs == "interleaved");
    made.fill(params);
    run_paro_prepare_cpu(params, core::torch_threads());
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
  const AttendedTensors made(q_codes, params.shape, out_dtype, need_lse);
  if (made.out.numel() > 0) {
    const Tensor dense_bits = torch::stable::contiguous(mask_bits);
    params.mask = mask_view(dense_bits, block_m, block_n);
    made.fill(params);
    cpu::expect_large_writes(params.out, static_cast<size_t>(made.out.numel()) * made.out.element_size());
    run_paro_attention_cpu(params, core::torch_threads());
  }
  return {made.out, made.lse};
}

}  // namespace
}  // namespace tokcore::attention

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("paro_prepare", TORCH_BOX(&tokcore::attention::paro_prepare));
  m.impl("paro_attention", TORCH_BOX(&tokcore::attention::paro_attention));
}
