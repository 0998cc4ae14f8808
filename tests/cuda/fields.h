// Params structs from Python: dictionaries of addresses and numbers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "tokcore/common/dtype.h"

namespace tokcore::simt {

// The fields of a params struct by name: addresses and numbers; what is not there stays 0 or null.
class Fields {
 public:
  explicit Fields(const pybind11::dict& values) : values_(values) {}
  ~Fields() noexcept(false) {
    if (taken_ != values_.size()) throw std::invalid_argument("there are fields that no params struct has");
  }
  template <class T>
  void operator()(const char* name, T& field) {
    if (!values_.contains(name)) return;
    ++taken_;
    if constexpr (std::is_pointer_v<T>) {
      field = reinterpret_cast<T>(values_[name].cast<uintptr_t>());
    } else {
      field = values_[name].cast<T>();
    }
  }
  // A struct in a dictionary of its own: fill(Fields&).
  template <class Fill>
  void nested(const char* name, Fill&& fill) {
    if (!values_.contains(name)) return;
    ++taken_;
    Fields inner(values_[name].cast<pybind11::dict>());
    fill(inner);
  }

 private:
  const pybind11::dict values_;
  size_t taken_ = 0;
};

inline DType dtype_of(const std::string& name) {
  if (name == "float32") return DType::kFloat32;
  return name == "float16" ? DType::kFloat16 : DType::kBFloat16;
}

}  // namespace tokcore::simt
