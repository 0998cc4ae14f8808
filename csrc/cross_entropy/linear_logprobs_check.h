// Validation of the op pair linear_logprobs_forward / _backward, shared by the backends: dtype, device, rank, shape,
// range, strides, in that order. python/tokcore/ops/_op_checks.py says the same of fake tensors.
#pragma once

#include <utility>

#include "core/tensors.h"
#include "tokcore/common/math.h"
#include "tokcore/cross_entropy/linear_logprobs.h"

namespace tokcore::cross_entropy {

using core::Checker;
using core::ScalarType;
using core::Tensor;

struct LogitsArguments {
  const Tensor& e;
  const Tensor& c;
  const Tensor& indices;
  const std::optional<Tensor>& bias;
  const std::optional<Tensor>& class_weight;
  int64_t seq_len;
  int64_t shift;
  std::optional<double> softcap;
  double temperature;
  std::optional<double> filter_eps;
  const char* indices_name = "indices";  // how the op calls its indices
};

// A fp32 argument with one value a position ([T]) or a gathered logit ([T, K]).
struct PositionArgument {
  const char* name;
  const Tensor* tensor;
  bool per_index;
};

inline void check_dtypes(const Checker& check, const LogitsArguments& a, const std::vector<PositionArgument>& vectors) {
  const ScalarType dtype = a.e.scalar_type();
  const bool supported = dtype == ScalarType::Float || dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  check.require(supported, "e", "dtype float32 or bfloat16 or float16", core::dtype_name(dtype));
  check.require(a.c.scalar_type() == dtype, "c", "dtype " + core::dtype_name(dtype) + " of e",
                core::dtype_name(a.c.scalar_type()));
  check.dtype(a.indices, a.indices_name, ScalarType::Long);
  if (a.bias.has_value()) {
    const ScalarType got = a.bias->scalar_type();
    const std::string choices = dtype == ScalarType::Float ? "float32" : core::dtype_name(dtype) + " or float32";
    check.require(got == dtype || got == ScalarType::Float, "bias", "dtype " + choices + " of e",
                  core::dtype_name(got));
  }
  if (a.class_weight.has_value()) check.dtype(*a.class_weight, "class_weight", ScalarType::Float);
  for (const PositionArgument& vector : vectors) check.dtype(*vector.tensor, vector.name, ScalarType::Float);
}

inline void check_shapes(const Checker& check, const LogitsArguments& a, const std::vector<PositionArgument>& vectors) {
  check.rank(a.e, "e", 2);
  check.rank(a.c, "c", 2);
  check.rank(a.indices, a.indices_name, 2);
  const std::string hidden = std::to_string(a.e.size(1));
  const std::string positions = std::to_string(a.e.size(0));
  check.require(a.c.size(1) == a.e.size(1), "c", "shape [V, " + hidden + "] ([V, C], C of e)", core::shape_of(a.c));
  check.require(a.c.size(0) >= 1, "c", "at least 1 row", core::shape_of(a.c));
  check.require(a.indices.size(0) == a.e.size(0), a.indices_name, "shape [" + positions + ", K] ([T, K], T of e)",
                core::shape_of(a.indices));
  check.require(a.indices.size(1) >= 1, a.indices_name, "at least 1 column", core::shape_of(a.indices));
  if (a.bias.has_value()) check.shape(*a.bias, "bias", {a.c.size(0)}, "V of c");
  if (a.class_weight.has_value()) check.shape(*a.class_weight, "class_weight", {a.c.size(0)}, "V of c");
  for (const PositionArgument& vector : vectors) {
    if (vector.per_index) {
      check.shape(*vector.tensor, vector.name, {a.indices.size(0), a.indices.size(1)}, "[T, K] of indices");
    } else {
      check.shape(*vector.tensor, vector.name, {a.e.size(0)}, "T of e");
    }
  }
}

inline void check_options(const Checker& check, const LogitsArguments& a, int64_t topk) {
  const int64_t num_positions = a.e.size(0), vocab_size = a.c.size(0);
  const bool divides = a.seq_len == 0 || (a.seq_len > 0 && num_positions % a.seq_len == 0);
  check.require(divides, "seq_len", "0 or a divisor of " + std::to_string(num_positions) + " (T of e)", a.seq_len);
  check.require(a.shift >= 0, "shift", "a value >= 0", a.shift);
  if (a.softcap.has_value()) {
    const bool finite = *a.softcap > 0.0 && std::isfinite(*a.softcap);
    check.require(finite, "softcap", "a finite value > 0 or None", *a.softcap);
  }
  const bool finite = a.temperature > 0.0 && std::isfinite(a.temperature);
  check.require(finite, "temperature", "a finite value > 0", a.temperature);
  check.require(topk >= 0 && topk <= vocab_size, "topk", "a value in [0, " + std::to_string(vocab_size) + "] (V of c)",
                topk);
  if (a.filter_eps.has_value()) {
    check.require(*a.filter_eps >= 0.0 && *a.filter_eps < 1.0, "filter_eps", "a value in [0, 1)", *a.filter_eps);
  }
  check.require(vocab_size < int64_t{1} << 31, "c", "fewer than 2147483648 rows", core::shape_of(a.c));
  check.require(num_positions < int64_t{1} << 31, "e", "fewer than 2147483648 rows", core::shape_of(a.e));
  check.unit_last_stride(a.e, "e");
  check.unit_last_stride(a.c, "c");
}

inline void check_arguments(const Checker& check, const LogitsArguments& a, int64_t topk,
                            const std::vector<PositionArgument>& vectors) {
  check_dtypes(check, a, vectors);
  check.same_device(a.c, "c", a.e, "e");
  check.same_device(a.indices, a.indices_name, a.e, "e");
  if (a.bias.has_value()) check.same_device(*a.bias, "bias", a.e, "e");
  if (a.class_weight.has_value()) check.same_device(*a.class_weight, "class_weight", a.e, "e");
  for (const PositionArgument& vector : vectors) check.same_device(*vector.tensor, vector.name, a.e, "e");
  check_shapes(check, a, vectors);
  check_options(check, a, topk);
}

// The threshold on p below which the filter may drop an element. A gradient through the entropy, |p (log p + H)|,
// shrinks more slowly than p; with H <= log V this threshold bounds it by eps too.
inline float filter_log_threshold(std::optional<double> filter_eps, bool entropy, int64_t vocab_size) {
  if (!filter_eps.has_value() || *filter_eps <= 0.0) return -INFINITY;
  const double log_eps = std::log(*filter_eps);
  if (!entropy) return static_cast<float>(log_eps);
  const double farthest = -log_eps + std::log(static_cast<double>(vocab_size));
  return static_cast<float>(log_eps - std::log1p(4.0 * (farthest + 1.0)));
}

}  // namespace tokcore::cross_entropy
