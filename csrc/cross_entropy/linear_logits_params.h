// From checked torch arguments to the part of the params structs that the family's CPU entries share.
#pragma once

#include "cross_entropy/linear_logprobs_check.h"
#include "tokcore/cpu/scratch.h"

namespace tokcore::cross_entropy {

// Positions that take part: not ignored, and with a row of e `shift` before them in their own sequence.
inline std::vector<int32_t> active_positions(const Checker& check, const LogitsArguments& a,
                                             const Tensor& dense_indices, std::optional<int64_t> ignore_index) {
  const int64_t* indices = core::data_of<int64_t>(dense_indices);
  const int64_t num_positions = a.e.size(0), vocab_size = a.c.size(0), num_indices = dense_indices.size(1);
  std::vector<int32_t> active;
  active.reserve(static_cast<size_t>(num_positions));
  const int64_t sequence = a.seq_len == 0 ? max(num_positions, 1) : a.seq_len;
  for (int64_t t = 0; t < num_positions; ++t) {
    if (t % sequence < a.shift) continue;
    const int64_t* row = indices + t * num_indices;
    if (ignore_index.has_value() && row[0] == *ignore_index) continue;
    for (int64_t k = 0; k < num_indices; ++k) {
      if (row[k] >= 0 && row[k] < vocab_size) continue;
      const std::string range = "values in [0, " + std::to_string(vocab_size) + ")";
      const std::string expected =
          ignore_index.has_value() ? range + " or ignore_index " + std::to_string(*ignore_index) : range;
      const std::string column = k > 0 ? ", column " + std::to_string(k) : "";
      check.fail(a.indices_name, expected, std::to_string(row[k]) + " at position " + std::to_string(t) + column);
    }
    active.push_back(static_cast<int32_t>(t));
  }
  return active;
}

inline void fill_params(LinearLogitsParams& params, const LogitsArguments& a, const Tensor& indices,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& class_weight,
                        const std::vector<int32_t>& active, bool entropy) {
  params.dtype = core::to_dtype(a.e.scalar_type());
  params.e = a.e.const_data_ptr();
  params.c = a.c.const_data_ptr();
  params.stride_e_row = a.e.stride(0);
  params.stride_c_row = a.c.stride(0);
  params.indices = core::data_of<int64_t>(indices);
  params.bias = core::float_data_or_null(bias);
  params.class_weight = core::float_data_or_null(class_weight);
  params.active_positions = active.data();
  params.num_positions = a.e.size(0);
  params.num_active = static_cast<int64_t>(active.size());
  params.hidden_size = a.e.size(1);
  params.vocab_size = a.c.size(0);
  params.num_indices = indices.size(1);
  params.shift = a.shift;
  params.softcap = static_cast<float>(a.softcap.value_or(0.0));
  params.temperature = static_cast<float>(a.temperature);
  params.filter_log_eps = filter_log_threshold(a.filter_eps, entropy, a.c.size(0));
}

// An output that a gradient kernel fills wholly (`covered`), partly, or not at all ([0], not needed).
inline Tensor make_gradient(const Tensor& like, bool needed, bool covered, const std::vector<int64_t>& sizes,
                            ScalarType type) {
  if (!needed) return core::empty_like_on(like, {0}, type);
  if (!covered) return core::zeros_like_on(like, sizes, type);
  const Tensor gradient = core::empty_like_on(like, sizes, type);
  cpu::expect_large_writes(gradient.mutable_data_ptr(),
                           static_cast<size_t>(gradient.numel()) * gradient.element_size());
  return gradient;
}

}  // namespace tokcore::cross_entropy
