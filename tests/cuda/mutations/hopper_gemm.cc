// Victim: the Hopper GEMM (kernels/hopper_gemm.h) with bugs of its kind: barriers of the ring, TMA, wgmma, epilogue.
#include "kernels/hopper_gemm.h"

#include <iterator>
#include <string>

#include "bindings.h"
#include "mutations/mutations.h"

namespace tokcore::simt::hopper_gemm {
namespace {

constexpr const char* kNames[] = {
    "wrong_byte_count",
    "byte_count_of_one_operand",
    "missing_full_wait",
    "missing_empty_wait",
    "wrong_full_phase",
    "wrong_empty_phase",
    "missing_empty_arrive",
    "double_empty_arrive",
    "early_empty_arrive",
    "empty_arrive_of_stage_in_use",
    "missing_init",
    "missing_init_fence",
    "unelected_load",
    "missing_wgmma_fence",
    "missing_wgmma_commit",
    "missing_wgmma_wait",
    "wgmma_wait_for_one_too_few",
    "unswizzled_descriptor",
    "wrong_descriptor_stride",
    "wgmma_of_three_warps",
    "unswizzled_read",
    "early_fragment_reload",
    "missing_proxy_fence",
    "missing_store_wait",
    "missing_store_commit",
    "missing_barrier_before_store",
    "named_barrier_count_too_small",
    "named_barrier_count_too_large",
    "register_overdraw",
    "missing_cluster_sync",
    "missing_remote_arrive",
};

constexpr bool concerns_registers(Mutation mutation) {
  return mutation == Mutation::kUnswizzledRead || mutation == Mutation::kEarlyFragmentReload;
}
constexpr bool concerns_cluster(Mutation mutation) {
  return mutation == Mutation::kMissingClusterSync || mutation == Mutation::kMissingRemoteArrive;
}

struct LaunchGemm {
  template <Mutation kMutation>
  static void run(const Problem& problem) {
    hopper_gemm::run<Config<BFloat16Kind, Major::K, Major::K, concerns_registers(kMutation),
                            concerns_cluster(kMutation) ? 2 : 1, kMutation>>(problem, "hopper_gemm");
  }
};

constexpr MutationTable<Mutation, std::size(kNames), LaunchGemm> kTable{kNames};

const Bindings bindings([](pybind11::module_& module) {
  module.def("hopper_gemm_mutations", [] { return kTable.list(); });
  module.def(
      "mutated_hopper_gemm",
      [](const std::string& mutation, uintptr_t a, uintptr_t b, uintptr_t c, int m, int n, int k, unsigned blocks) {
        kTable.run(mutation,
                   Problem{pointer<const void>(a), pointer<const void>(b), pointer<void>(c), m, n, k, blocks});
      },
      WithoutGil());
});

}  // namespace
}  // namespace tokcore::simt::hopper_gemm
