// What `tokcore info` and the benchmarks ask of this machine.
#include <torch/csrc/stable/library.h>

#include "core/check.h"
#include "core/threads.h"
#include "tokcore/cpu/isa.h"
#include "tokcore/cpu/measure_peak.h"
#include "tokcore/cpu/scratch.h"

namespace tokcore {
namespace {

std::string cpu_isa() { return cpu::name_of(cpu::active_isa()); }

std::vector<std::string> cpu_isa_levels() { return cpu::isa_levels(); }

double measure_peak(std::string kind, double seconds) {
  const core::Checker check("measure_peak");
  check.require(seconds > 0.0 && seconds <= 60.0, "seconds", "a value in (0, 60]", seconds);
  const char* names[] = {"fma_fp32", "amx_bf16", "amx_int8", "read"};
  for (int i = 0; i < 4; ++i) {
    if (kind == names[i]) return run_measure_peak_cpu(static_cast<PeakKind>(i), seconds, core::torch_threads());
  }
  check.fail("kind", "one of fma_fp32, amx_bf16, amx_int8, read", kind);
}

void expect_large_writes(const core::Tensor& tensor) {
  const core::Checker check("expect_large_writes");
  check.require(tensor.is_contiguous(), "tensor", "a contiguous tensor", core::shape_of(tensor));
  cpu::expect_large_writes(tensor.mutable_data_ptr(), static_cast<size_t>(tensor.numel() * tensor.element_size()));
}

}  // namespace
}  // namespace tokcore

STABLE_TORCH_LIBRARY_IMPL(tokcore, CPU, m) { m.impl("expect_large_writes", TORCH_BOX(&tokcore::expect_large_writes)); }

STABLE_TORCH_LIBRARY_IMPL(tokcore, CompositeExplicitAutograd, m) {
  m.impl("cpu_isa", TORCH_BOX(&tokcore::cpu_isa));
  m.impl("cpu_isa_levels", TORCH_BOX(&tokcore::cpu_isa_levels));
  m.impl("measure_peak", TORCH_BOX(&tokcore::measure_peak));
}
