// Torch-facing CPU entries of paro_prepare and paro_attention.
#include <torch/csrc/stable/library.h>

#include "attention/paro_check.h"
#include "core/threads.h"
#include "tokcore/cpu/scratch.h"

namespace tokcore::attention {
namespace {

using Prepared = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Tensor make_floats(const Tensor& like, const std::vector<int64_t>& shape, bool needed) {
  return core::empty_like_on(like, needed ? shape : std::vector<int64_t>{0}, ScalarType::Float);
}
float* floats_or_null(const Tensor& tensor, bool needed) {
  return needed ? core::mutable_data_of<float>(tensor) : nullptr;
}

Prepared paro_prepare(const Tensor& q, const Tensor& k, const Tensor& v, std::vector<int64_t> permutation,
                      std::vector<int64_t> grid, std::vector<int64_t> text, std::optional<Tensor> rope_cos,
                      std::optional<Tensor> rope_sin, std::string rope_pairs, std::string qk, std::string pv,
                      bool smooth_k, bool need_lse) {
  const Checker check("paro_prepare");
  ParoPrepareParams params = {};
  check_prepare(check, q, k, v, {permutation, grid, text, rope_cos, rope_sin, rope_pairs, qk, pv}, params);
  const ParoShape& shape = params.shape;
  const int64_t B = shape.batch, H = shape.num_heads, Hkv = shape.num_kv_heads, P = shape.padded_length();
  const bool scales_qk = is_quantized(params.qk), scales_pv = is_quantized(params.pv), corrects = smooth_k && need_lse;

  const Tensor q_codes = core::empty_like_on(q, query_code_shape(shape, H, params.qk), query_code_type(params.qk));
  const Tensor k_codes = core::empty_like_on(q, query_code_shape(shape, Hkv, params.qk), query_code_type(params.qk));
  const Tensor v_codes = core::empty_like_on(q, value_code_shape(shape, params.pv), value_code_type(params.pv));
  const Tensor q_scale = make_floats(q, {B, H, P}, scales_qk);
  const Tensor k_scale = make_floats(q, {B, Hkv, P / kParoGroup}, scales_qk);
  const Tensor v_scale = make_floats(q, {B, Hkv, shape.head_dim}, scales_pv);
  const Tensor k_mean = make_floats(q, {B, Hkv, shape.head_dim}, smooth_k);
  const Tensor mean_score = make_floats(q, {B, H, shape.length}, corrects);
  if (q.numel() > 0) {
    Tensor cos = q, sin = q;
    if (rope_cos.has_value()) {
      cos = torch::stable::contiguous(*rope_cos);
      sin = torch::stable::contiguous(*rope_sin);
      fill_rotation(params, cos, sin, rope_pairs == "interleaved");
    }
    params.q_codes = q_codes.mutable_data_ptr();
    params.k_codes = k_codes.mutable_data_ptr();
    params.v_codes = v_codes.mutable_data_ptr();
    params.q_scale = floats_or_null(q_scale, scales_qk);
    params.k_scale = floats_or_null(k_scale, scales_qk);
    params.v_scale = floats_or_null(v_scale, scales_pv);
    params.k_mean = floats_or_null(k_mean, smooth_k);
    params.mean_score = floats_or_null(mean_score, corrects);
    run_paro_prepare_cpu(params, core::torch_threads());
  }
  return {q_codes, q_scale, k_codes, k_scale, v_codes, v_scale, k_mean, mean_score};
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
  const ParoShape& shape = params.shape;
  const Tensor out =
      core::empty_like_on(q_codes, {shape.batch, shape.num_heads, shape.length, shape.head_dim}, out_dtype);
  const Tensor lse = make_floats(q_codes, {shape.batch, shape.num_heads, shape.length}, need_lse);
  if (out.numel() > 0) {
    const Tensor dense_bits = torch::stable::contiguous(mask_bits);
    params.mask = mask_view(dense_bits, block_m, block_n);
    params.out = out.mutable_data_ptr();
    params.lse = floats_or_null(lse, need_lse);
    cpu::expect_large_writes(params.out, static_cast<size_t>(out.numel()) * out.element_size());
    run_paro_attention_cpu(params, core::torch_threads());
  }
  return {out, lse};
}

}  // namespace
}  // namespace tokcore::attention

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) {
  m.impl("paro_prepare", TORCH_BOX(&tokcore::attention::paro_prepare));
  m.impl("paro_attention", TORCH_BOX(&tokcore::attention::paro_attention));
}
