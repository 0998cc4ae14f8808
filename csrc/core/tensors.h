// From torch tensors to what params structs hold.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <vector>

#include "core/check.h"

namespace tokcore::core {

inline DType to_dtype(ScalarType type) {
  return type == ScalarType::Float ? DType::kFloat32 : type == ScalarType::Half ? DType::kFloat16 : DType::kBFloat16;
}

inline Tensor empty_like_on(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::new_empty(like, sizes, type);
}
inline Tensor zeros_like_on(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType type) {
  return torch::stable::new_zeros(like, sizes, type);
}

template <class T>
const T* data_of(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}
template <class T>
T* mutable_data_of(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// A contiguous fp32 copy of an optional vector, or the vector itself where it already is one.
inline std::optional<Tensor> as_contiguous_float(const std::optional<Tensor>& tensor) {
  if (!tensor.has_value()) return std::nullopt;
  Tensor result = torch::stable::contiguous(*tensor);
  if (result.scalar_type() != ScalarType::Float) result = torch::stable::to(result, ScalarType::Float);
  return result;
}
inline const float* float_data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data_of<float>(*tensor) : nullptr;
}

}  // namespace tokcore::core
