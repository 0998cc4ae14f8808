// Argument checks of the torch-facing entries: one text form, "tokcore.<op>: argument '<name>': expected <…>, got <…>".
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cmath>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "tokcore/common/dtype.h"

namespace tokcore::core {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string dtype_name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Short:
      return "int16";
    case ScalarType::Char:
      return "int8";
    case ScalarType::Byte:
      return "uint8";
    case ScalarType::Bool:
      return "bool";
    default:
      return "dtype " + std::to_string(static_cast<int>(type));
  }
}

inline std::string device_name(const Tensor& tensor) {
  if (tensor.is_cpu()) return "cpu";
  if (tensor.is_cuda()) return "cuda:" + std::to_string(tensor.get_device_index());
  return "another device";
}

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
  return text + "]";
}
inline std::string shape_of(const Tensor& tensor) { return shape_text(tensor.sizes()); }

// The checks of one op; each throws std::runtime_error, which Python sees as RuntimeError. Texts are made on failure
// only: ops that take many tensors are called for microseconds of work. What takes time to say is said by a function.
class Checker {
 public:
  explicit Checker(const char* op) : op_(op) {}

  template <class Expected, class Got>
  void require(bool holds, const char* argument, const Expected& expected, const Got& got) const {
    if (!holds) fail(argument, expected, got);
  }
  template <class Expected, class Got>
  [[noreturn]] void fail(const char* argument, const Expected& expected, const Got& got) const {
    std::ostringstream text;
    text << "tokcore." << op_ << ": argument '" << argument << "': expected " << said(expected) << ", got "
         << said(got);
    throw std::runtime_error(text.str());
  }

  void dtype(const Tensor& tensor, const char* argument, ScalarType expected) const {
    if (tensor.scalar_type() == expected) return;
    fail(argument, "dtype " + dtype_name(expected), dtype_name(tensor.scalar_type()));
  }
  void same_device(const Tensor& tensor, const char* argument, const Tensor& other, const char* other_name) const {
    if (tensor.is_cpu() && other.is_cpu()) return;
    const std::string expected = device_name(other), got = device_name(tensor);
    require(expected == got, argument, "device " + expected + " of " + other_name, got);
  }
  void rank(const Tensor& tensor, const char* argument, int64_t expected) const {
    if (tensor.dim() != expected) fail(argument, std::to_string(expected) + " dimensions", tensor.dim());
  }
  // `letters` names the dimensions: "[4, 2] ([T, K] of indices)".
  void shape(const Tensor& tensor, const char* argument, const std::vector<int64_t>& expected,
             std::string_view letters) const {
    bool same = tensor.dim() == static_cast<int64_t>(expected.size());
    for (size_t i = 0; same && i < expected.size(); ++i) same = tensor.size(static_cast<int64_t>(i)) == expected[i];
    if (!same) fail(argument, "shape " + shape_text(expected) + " (" + std::string(letters) + ")", shape_of(tensor));
  }
  void unit_last_stride(const Tensor& tensor, const char* argument) const {
    const int64_t last = tensor.dim() - 1;
    const bool free = tensor.numel() == 0 || tensor.size(last) == 1;
    require(free || tensor.stride(last) == 1, argument, "stride 1 in the last dimension", tensor.stride(last));
  }

 private:
  template <class Text>
  static decltype(auto) said(const Text& text) {
    if constexpr (std::is_invocable_v<Text>) {
      return text();
    } else {
      return (text);
    }
  }

  const char* op_;
};

}  // namespace tokcore::core
