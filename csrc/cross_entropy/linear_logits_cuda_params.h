// From checked torch arguments to the part of the params structs that the family's CUDA entries share.
#pragma once

#include "core/cuda_scope.h"
#include "cross_entropy/linear_logprobs_check.h"
#include "tokcore/cross_entropy/linear_logprobs_cuda.h"

namespace tokcore::cross_entropy {

// Which positions are active is found on the device, which also finds indices out of range: they make NaN there.
inline void fill_params(LinearLogitsParams& params, const LogitsArguments& a, const Tensor& indices,
                        const std::optional<Tensor>& bias, const std::optional<Tensor>& class_weight, bool entropy) {
  params.dtype = core::to_dtype(a.e.scalar_type());
  params.e = a.e.const_data_ptr();
  params.c = a.c.const_data_ptr();
  params.stride_e_row = a.e.stride(0);
  params.stride_c_row = a.c.stride(0);
  params.indices = core::data_of<int64_t>(indices);
  params.bias = core::float_data_or_null(bias);
  params.class_weight = core::float_data_or_null(class_weight);
  params.num_positions = a.e.size(0);
  params.hidden_size = a.e.size(1);
  params.vocab_size = a.c.size(0);
  params.num_indices = indices.size(1);
  params.shift = a.shift;
  params.softcap = static_cast<float>(a.softcap.value_or(0.0));
  params.temperature = static_cast<float>(a.temperature);
  params.filter_log_eps = filter_log_threshold(a.filter_eps, entropy, a.c.size(0));
}

// An output that a kernel fills wholly, or [0] where it is not wanted.
inline Tensor make_output(const Tensor& like, bool wanted, const std::vector<int64_t>& sizes, ScalarType type) {
  return core::empty_like_on(like, wanted ? sizes : std::vector<int64_t>{0}, type);
}

inline void check_workspace(const Checker& check, const LinearLogprobsBackwardParams& params, int64_t workspace_bytes,
                            const CudaMachine& machine) {
  const int64_t least = least_backward_workspace_cuda(params, machine);
  check.require(workspace_bytes >= least, "workspace_bytes", "at least " + std::to_string(least), workspace_bytes);
}

}  // namespace tokcore::cross_entropy
