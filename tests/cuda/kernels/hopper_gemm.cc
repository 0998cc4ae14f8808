// The Hopper GEMM for pytest: operand types, majors, operand a from registers, a cluster with multicast.
#include "kernels/hopper_gemm.h"

#include <stdexcept>
#include <string>

#include "bindings.h"

namespace tokcore::simt::hopper_gemm {
namespace {

constexpr Major kK = Major::K, kMN = Major::MN;

void run_kind(const std::string& kind, const Problem& problem) {
  static constexpr std::pair<const char*, void (*)(const Problem&, const char*)> kKinds[] = {
      {"bf16_k_k", &run<Config<BFloat16Kind, kK, kK>>},
      {"bf16_k_mn", &run<Config<BFloat16Kind, kK, kMN>>},
      {"bf16_mn_k", &run<Config<BFloat16Kind, kMN, kK>>},
      {"bf16_mn_mn", &run<Config<BFloat16Kind, kMN, kMN>>},
      {"bf16_registers", &run<Config<BFloat16Kind, kK, kK, true>>},
      {"bf16_cluster", &run<Config<BFloat16Kind, kK, kK, false, 2>>},
      {"s8", &run<Config<Int8Kind>>},
      {"e4m3", &run<Config<E4M3Kind>>},
  };
  for (const auto& [name, function] : kKinds) {
    if (kind == name) return function(problem, name);
  }
  throw std::invalid_argument("no Hopper GEMM is called " + kind);
}

const Bindings bindings([](pybind11::module_& module) {
  module.def(
      "hopper_gemm",
      [](const std::string& kind, uintptr_t a, uintptr_t b, uintptr_t c, int m, int n, int k, unsigned blocks) {
        run_kind(kind, {pointer<const void>(a), pointer<const void>(b), pointer<void>(c), m, n, k, blocks});
      },
      WithoutGil());
});

}  // namespace
}  // namespace tokcore::simt::hopper_gemm
