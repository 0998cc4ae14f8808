// A victim: a kernel that takes the bug to plant as a template argument. Its file lists the bugs by name and registers
// itself; tests/cuda/mutation_suite.py proves that the unharmed kernel passes under every policy and that each bug is
// caught under one at least.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace tokcore::simt {

// Mutation is an enumeration that begins with kNone = 0 and numbers its bugs from 1 on, in the order of `names`.
template <class Mutation, size_t kCount, class Launch>
struct MutationTable {
  const char* const (&names)[kCount];

  std::vector<std::string> list() const { return {names, names + kCount}; }

  // Calls Launch::run<mutation>(args...) for the bug of that name; "" is the unharmed kernel.
  template <class... Args>
  void run(const std::string& name, const Args&... args) const {
    if (name.empty()) return Launch::template run<Mutation{}>(args...);
    const bool known = [&]<size_t... kIndex>(std::index_sequence<kIndex...>) {
      return ((name == names[kIndex] && (Launch::template run<static_cast<Mutation>(kIndex + 1)>(args...), true)) ||
              ...);
    }(std::make_index_sequence<kCount>());
    if (!known) throw std::invalid_argument("no mutation is called " + name);
  }
};

}  // namespace tokcore::simt
