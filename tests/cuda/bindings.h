// How a file of test kernels adds its functions to the module tokcore_simt.
#pragma once

#include <pybind11/pybind11.h>

namespace tokcore::simt {

// One static object per file:  const Bindings bindings([](py::module_& m) { m.def(...); });
class Bindings {
 public:
  using Bind = void (*)(pybind11::module_& module);
  explicit Bindings(Bind bind) : bind_(bind), next_(first) { first = this; }

  static void bind_all(pybind11::module_& module) {
    for (const Bindings* b = first; b != nullptr; b = b->next_) b->bind_(module);
  }

 private:
  static inline const Bindings* first = nullptr;
  Bind bind_;
  const Bindings* next_;
};

// Kernels run without the interpreter's lock:  m.def("name", &function, kWithoutGil)
using WithoutGil = pybind11::call_guard<pybind11::gil_scoped_release>;

// Python passes addresses (tensor.data_ptr()) as integers.
template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

}  // namespace tokcore::simt
