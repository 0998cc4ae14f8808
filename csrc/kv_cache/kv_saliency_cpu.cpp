// Torch-facing CPU entry of kv_saliency.
#include <torch/csrc/stable/library.h>

#include "core/threads.h"
#include "kv_cache/kv_quantize_check.h"
#include "tokcore/kv_cache/kv_saliency.h"

namespace tokcore::kv_cache {
namespace {

SaliencyReduce to_reduce(const Checker& check, const std::string& reduce) {
  if (reduce == "normalized_sum") return SaliencyReduce::kNormalizedSum;
  if (reduce == "sum") return SaliencyReduce::kSum;
  if (reduce == "max") return SaliencyReduce::kMax;
  if (reduce == "decayed") return SaliencyReduce::kDecayed;
  check.fail("reduce", "'normalized_sum' or 'sum' or 'max' or 'decayed'", "'" + reduce + "'");
}

Tensor kv_saliency(const Tensor& q_probe, const Tensor& k, const Tensor& probe_positions, std::optional<Tensor> lse,
                   double scale, std::string reduce, double decay, double temperature,
                   std::optional<int64_t> gumbel_seed) {
  const Checker check("kv_saliency");
  check_real(check, "q_probe", q_probe.scalar_type());
  check.require(k.scalar_type() == q_probe.scalar_type(), "k",
                "dtype " + core::dtype_name(q_probe.scalar_type()) + " of q_probe", core::dtype_name(k.scalar_type()));
  check.dtype(probe_positions, "probe_positions", ScalarType::Int);
  if (lse.has_value()) check.dtype(*lse, "lse", ScalarType::Float);
  check.same_device(k, "k", q_probe, "q_probe");
  check.same_device(probe_positions, "probe_positions", q_probe, "q_probe");
  if (lse.has_value()) check.same_device(*lse, "lse", q_probe, "q_probe");
  check.rank(q_probe, "q_probe", 4);
  check.rank(k, "k", 4);
  const int64_t B = q_probe.size(0), T = q_probe.size(1), H = q_probe.size(2), D = q_probe.size(3);
  check.shape(k, "k", {B, k.size(1), k.size(2), D}, "[B, N, Hkv, D], B and D of q_probe");
  check.require(k.size(2) > 0 && H > 0 && H % k.size(2) == 0, "q_probe",
                "H a positive multiple of " + std::to_string(k.size(2)) + " (Hkv)", H);
  check.shape(probe_positions, "probe_positions", {B, T}, "[B, T] of q_probe");
  if (lse.has_value()) check.shape(*lse, "lse", {B, H, T}, "[B, H, T] of q_probe");
  check.require(D >= 1, "q_probe", "D >= 1", D);
  check.require(std::isfinite(scale), "scale", "a finite value", scale);
  const SaliencyReduce kind = to_reduce(check, reduce);
  check.require(decay > 0.0 && decay <= 1.0, "decay", "a value in (0, 1]", decay);
  check.require(temperature > 0.0 && std::isfinite(temperature), "temperature", "a finite value > 0", temperature);
  check.unit_last_stride(q_probe, "q_probe");
  check.unit_last_stride(k, "k");

  const Tensor scores = core::zeros_like_on(q_probe, {B, k.size(2), k.size(1)}, ScalarType::Float);
  if (scores.numel() == 0 || T == 0) return scores;
  const Tensor dense_positions = torch::stable::contiguous(probe_positions);
  const std::optional<Tensor> dense_lse = core::as_contiguous_float(lse);
  KvSaliencyParams params = {};
  params.dtype = core::to_dtype(q_probe.scalar_type());
  params.q = q_probe.const_data_ptr();
  params.k = k.const_data_ptr();
  params.stride_q_sequence = q_probe.stride(0);
  params.stride_q_probe = q_probe.stride(1);
  params.stride_q_head = q_probe.stride(2);
  params.stride_k_sequence = k.stride(0);
  params.stride_k_token = k.stride(1);
  params.stride_k_head = k.stride(2);
  params.positions = core::data_of<int32_t>(dense_positions);
  params.lse = core::float_data_or_null(dense_lse);
  params.num_sequences = B;
  params.num_probes = T;
  params.num_q_heads = H;
  params.num_heads = k.size(2);
  params.num_tokens = k.size(1);
  params.head_dim = D;
  params.scale = static_cast<float>(scale);
  params.temperature = static_cast<float>(temperature);
  params.adds_noise = gumbel_seed.has_value();
  params.seed = static_cast<uint64_t>(gumbel_seed.value_or(0));
  params.reduce = kind;
  params.decay = static_cast<float>(decay);
  params.scores = core::mutable_data_of<float>(scores);
  run_kv_saliency_cpu(params, core::torch_threads());
  return scores;
}

}  // namespace
}  // namespace tokcore::kv_cache

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) { m.impl("kv_saliency", TORCH_BOX(&tokcore::kv_cache::kv_saliency)); }
