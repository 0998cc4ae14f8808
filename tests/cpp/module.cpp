// tokcore_testing: the CPU vocabulary for pytest, at any instruction-set level this machine has.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>

#include "tokcore/common/dtype.h"
#include "vocabulary_run.h"

namespace py = pybind11;

namespace tokcore::testing {
namespace {

using Floats = py::array_t<float, py::array::c_style | py::array::forcecast>;
using Bytes = py::array_t<int8_t, py::array::c_style | py::array::forcecast>;
using Ints = py::array_t<int32_t, py::array::c_style | py::array::forcecast>;

const Vocabulary& at_level(const std::string& level) {
  const std::vector<std::string> levels = cpu::isa_levels();
  for (size_t i = 0; i < levels.size(); ++i) {
    if (levels[i] == level) return vocabulary(static_cast<cpu::Isa>(i));
  }
  throw std::invalid_argument("this machine has no level " + level);
}

template <class Call>
Floats elementwise(const Floats& in, Call&& call) {
  if (in.size() % 16 != 0) throw std::invalid_argument("the number of elements must be a multiple of 16");
  Floats out(in.size());
  call(in.data(), out.mutable_data(), static_cast<int64_t>(in.size()));
  return out;
}

void require_blocks(const py::array& a, const py::array& b) {
  const bool fits = a.ndim() == 2 && b.ndim() == 2 && a.shape(0) == 32 && b.shape(0) == 32 && a.shape(1) == b.shape(1);
  if (!fits) throw std::invalid_argument("a and b must both be [32, K]");
}

Floats multiply(const std::string& level, const std::string& engine, const Floats& a, const Floats& b,
                const Floats& initial, const std::optional<Ints>& steps, bool backwards, bool through_columns) {
  require_blocks(a, b);
  Floats out({32, 32});
  std::copy(initial.data(), initial.data() + 1024, out.mutable_data());
  const BlockProduct product = {a.data(),
                                b.data(),
                                static_cast<int64_t>(a.shape(1)),
                                steps ? steps->data() : nullptr,
                                steps ? static_cast<int64_t>(steps->size()) : 0,
                                backwards,
                                through_columns,
                                out.mutable_data()};
  const Vocabulary& vocabulary = at_level(level);
  if (engine == "fma") {
    vocabulary.multiply_fma(product);
  } else if (!(engine == "split" ? vocabulary.multiply_split : vocabulary.multiply_bfloat16)(product)) {
    throw std::invalid_argument("level " + level + " has no bf16 unit");
  }
  return out;
}

Ints multiply_int8(const std::string& level, const Bytes& a, const Bytes& b, const Ints& initial) {
  require_blocks(a, b);
  Ints out({32, 32});
  std::copy(initial.data(), initial.data() + 1024, out.mutable_data());
  at_level(level).multiply_int8({a.data(), b.data(), static_cast<int64_t>(a.shape(1)), out.mutable_data()});
  return out;
}

std::pair<Floats, Floats> online_softmax(const std::string& level, const Floats& logits) {
  if (logits.ndim() != 2 || logits.shape(1) != 16) throw std::invalid_argument("logits must be [N, 16]");
  Floats lse(16), entropy(16);
  at_level(level).online_softmax(
      {logits.data(), static_cast<int64_t>(logits.shape(0)), lse.mutable_data(), entropy.mutable_data()});
  return {lse, entropy};
}

}  // namespace

PYBIND11_MODULE(tokcore_testing, m) {
  m.doc() = "The CPU vocabulary of tokcore at any instruction-set level, for tests.";
  m.def("isa_levels", &cpu::isa_levels);
  m.def("exp", [](const std::string& level, const Floats& x) {
    return elementwise(x, [&](auto... a) { at_level(level).apply(Function::kExp, a...); });
  });
  m.def("tanh", [](const std::string& level, const Floats& x) {
    return elementwise(x, [&](auto... a) { at_level(level).apply(Function::kTanh, a...); });
  });
  m.def("round_trip", [](const std::string& level, const std::string& dtype, const Floats& x) {
    const DType type = dtype == "bfloat16" ? DType::kBFloat16 : DType::kFloat16;
    return elementwise(x, [&](auto... a) { at_level(level).round_trip(static_cast<int>(type), a...); });
  });
  m.def("upper_bound", [](const std::string& level, const Floats& x) {
    return elementwise(x, [&](auto... a) { at_level(level).upper_bound(a...); });
  });
  m.def("transpose_block", [](const std::string& level, const Floats& block) {
    if (block.size() != 1024) throw std::invalid_argument("block must be [32, 32]");
    Floats out({32, 32});
    at_level(level).transpose_block(block.data(), out.mutable_data());
    return out;
  });
  m.def("multiply", &multiply);
  m.def("multiply_int8", &multiply_int8);
  m.def("online_softmax", &online_softmax);
}

}  // namespace tokcore::testing
