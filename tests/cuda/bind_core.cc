// Policy and guarded buffers.
#include <stdexcept>
#include <string>

#include "bindings.h"
#include "simt/memory.h"
#include "simt/policy.h"

namespace py = pybind11;

namespace tokcore::simt {
namespace {

template <class T, size_t N>
T choose(const std::string& name, const std::pair<const char*, T> (&choices)[N]) {
  std::string known;
  for (const auto& [text, value] : choices) {
    if (name == text) return value;
    known += (known.empty() ? "" : ", ") + std::string(text);
  }
  throw std::invalid_argument(name + " is none of " + known);
}

void set_policy(const std::string& order, const std::string& asynchrony, uint64_t seed, int workers) {
  policy() = {
      choose<Order>(order, {{"in_order", Order::kInOrder}, {"reversed", Order::kReversed}, {"random", Order::kRandom}}),
      seed,
      choose<Asynchrony>(asynchrony,
                         {{"late", Asynchrony::kLate}, {"early", Asynchrony::kEarly}, {"random", Asynchrony::kRandom}}),
      workers};
}

std::unique_ptr<GuardedBuffer> make_buffer(size_t bytes, const std::string& placement, std::string name,
                                           size_t alignment) {
  using Placement = GuardedBuffer::Placement;
  return std::make_unique<GuardedBuffer>(
      bytes, choose<Placement>(placement, {{"end", Placement::kEnd}, {"start", Placement::kStart}}), std::move(name),
      alignment);
}

const Bindings bindings([](py::module_& m) {
  m.def("set_policy", &set_policy, py::kw_only(), py::arg("order") = "in_order", py::arg("asynchrony") = "late",
        py::arg("seed") = 0, py::arg("workers") = 1);
  py::class_<GuardedBuffer>(m, "GuardedBuffer", py::buffer_protocol())
      .def(py::init(&make_buffer), py::arg("bytes"), py::kw_only(), py::arg("placement") = "end", py::arg("name") = "",
           py::arg("alignment") = 16)
      .def_buffer([](GuardedBuffer& buffer) {
        return py::buffer_info(static_cast<unsigned char*>(buffer.data()), static_cast<py::ssize_t>(buffer.bytes()));
      })
      .def("data_ptr", [](const GuardedBuffer& buffer) { return reinterpret_cast<uintptr_t>(buffer.data()); })
      .def("protect", [](GuardedBuffer& buffer) { buffer.protect(GuardedBuffer::Access::kReadOnly); })
      .def("damage", &GuardedBuffer::damage);
});

}  // namespace
}  // namespace tokcore::simt
