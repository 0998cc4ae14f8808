// tokcore_simt: the CUDA kernels of tokcore for pytest, executed on the CPU.
#include "bindings.h"
#include "simt/thread.h"

PYBIND11_MODULE(tokcore_simt, m) {
  m.doc() = "The CUDA kernels of tokcore, executed on the CPU, for tests.";
  pybind11::register_exception<tokcore::simt::Error>(m, "Error", PyExc_RuntimeError);
  tokcore::simt::Bindings::bind_all(m);
}
