// Validation of kv_saliency and the params it makes, shared by the backends.
#pragma once

#include "kv_cache/kv_quantize_check.h"
#include "tokcore/kv_cache/kv_saliency.h"

namespace tokcore::kv_cache {

struct SaliencyArguments {
  const Tensor& q_probe;
  const Tensor& k;
  const Tensor& probe_positions;
  const std::optional<Tensor>& lse;
  double scale;
  const std::string& reduce;
  double decay, temperature;
  std::optional<int64_t> gumbel_seed;
};

inline SaliencyReduce to_reduce(const Checker& check, const std::string& reduce) {
  if (reduce == "normalized_sum") return SaliencyReduce::kNormalizedSum;
  if (reduce == "sum") return SaliencyReduce::kSum;
  if (reduce == "max") return SaliencyReduce::kMax;
  if (reduce == "decayed") return SaliencyReduce::kDecayed;
  check.fail("reduce", "'normalized_sum' or 'sum' or 'max' or 'decayed'", "'" + reduce + "'");
}

inline SaliencyReduce check_saliency(const Checker& check, const SaliencyArguments& a) {
  check_real(check, "q_probe", a.q_probe.scalar_type());
  check.require(a.k.scalar_type() == a.q_probe.scalar_type(), "k",
                "dtype " + core::dtype_name(a.q_probe.scalar_type()) + " of q_probe",
                core::dtype_name(a.k.scalar_type()));
  check.dtype(a.probe_positions, "probe_positions", ScalarType::Int);
  if (a.lse.has_value()) check.dtype(*a.lse, "lse", ScalarType::Float);
  check.same_device(a.k, "k", a.q_probe, "q_probe");
  check.same_device(a.probe_positions, "probe_positions", a.q_probe, "q_probe");
  if (a.lse.has_value()) check.same_device(*a.lse, "lse", a.q_probe, "q_probe");
  check.rank(a.q_probe, "q_probe", 4);
  check.rank(a.k, "k", 4);
  const int64_t B = a.q_probe.size(0), T = a.q_probe.size(1), H = a.q_probe.size(2), D = a.q_probe.size(3);
  check.shape(a.k, "k", {B, a.k.size(1), a.k.size(2), D}, "[B, N, Hkv, D], B and D of q_probe");
  check.require(a.k.size(2) > 0 && H > 0 && H % a.k.size(2) == 0, "q_probe",
                "H a positive multiple of " + std::to_string(a.k.size(2)) + " (Hkv)", H);
  check.shape(a.probe_positions, "probe_positions", {B, T}, "[B, T] of q_probe");
  if (a.lse.has_value()) check.shape(*a.lse, "lse", {B, H, T}, "[B, H, T] of q_probe");
  check.require(D >= 1, "q_probe", "D >= 1", D);
  check.require(std::isfinite(a.scale), "scale", "a finite value", a.scale);
  const SaliencyReduce kind = to_reduce(check, a.reduce);
  check.require(a.decay > 0.0 && a.decay <= 1.0, "decay", "a value in (0, 1]", a.decay);
  check.require(a.temperature > 0.0 && std::isfinite(a.temperature), "temperature", "a finite value > 0",
                a.temperature);
  check.unit_last_stride(a.q_probe, "q_probe");
  check.unit_last_stride(a.k, "k");
  return kind;
}

// Sizes and options; dense positions and lse are what kernels read.
inline KvSaliencyParams saliency_params(const SaliencyArguments& a, SaliencyReduce kind, const Tensor& dense_positions,
                                        const std::optional<Tensor>& dense_lse, const Tensor& scores) {
  KvSaliencyParams params = {};
  params.dtype = core::to_dtype(a.q_probe.scalar_type());
  params.q = a.q_probe.const_data_ptr();
  params.k = a.k.const_data_ptr();
  params.stride_q_sequence = a.q_probe.stride(0);
  params.stride_q_probe = a.q_probe.stride(1);
  params.stride_q_head = a.q_probe.stride(2);
  params.stride_k_sequence = a.k.stride(0);
  params.stride_k_token = a.k.stride(1);
  params.stride_k_head = a.k.stride(2);
  params.positions = core::data_of<int32_t>(dense_positions);
  params.lse = core::float_data_or_null(dense_lse);
  params.num_sequences = a.q_probe.size(0);
  params.num_probes = a.q_probe.size(1);
  params.num_q_heads = a.q_probe.size(2);
  params.num_heads = a.k.size(2);
  params.num_tokens = a.k.size(1);
  params.head_dim = a.q_probe.size(3);
  params.scale = static_cast<float>(a.scale);
  params.temperature = static_cast<float>(a.temperature);
  params.adds_noise = a.gumbel_seed.has_value();
  params.seed = static_cast<uint64_t>(a.gumbel_seed.value_or(0));
  params.reduce = kind;
  params.decay = static_cast<float>(a.decay);
  params.scores = core::mutable_data_of<float>(scores);
  return params;
}

}  // namespace tokcore::kv_cache
