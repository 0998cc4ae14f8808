// mma.sync, ldmatrix and cp.async against the fragment layouts of the PTX manual, written down here by hand: the
// emulation takes them from CuTe.
#include <cute/arch/copy_sm75.hpp>
#include <cute/arch/copy_sm80.hpp>
#include <cute/arch/mma_sm80.hpp>
#include <cute/arch/mma_sm89.hpp>

#include <map>
#include <string>
#include <utility>

#include "bindings.h"
#include "tokcore/cuda/kernel.h"
#include "tokcore/cuda/launch.h"

namespace tokcore::simt {
namespace {

using cuda::LaunchConfig;

template <class Registers>
constexpr int kCount = std::extent_v<Registers>;

template <class Op, class D, class A, class B, class C>
TOKCORE_DEVICE void call_fma(D& d, const A& a, const B& b, const C& c) {
  [&]<size_t... i, size_t... j, size_t... k>(std::index_sequence<i...>, std::index_sequence<j...>,
                                             std::index_sequence<k...>) {
    Op::fma(d[i]..., a[j]..., b[k]..., c[i]...);
  }(std::make_index_sequence<std::extent_v<D>>(), std::make_index_sequence<std::extent_v<A>>(),
    std::make_index_sequence<std::extent_v<B>>());
}

// d = a b^T + c for one instruction: a [kRows, kDepth], b [8, kDepth], c and d [kRows, 8], 32-bit registers that hold
// neighbours along K.
template <class Op>
__global__ void mma_kernel(const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* d) {
  constexpr int num_a = kCount<typename Op::ARegisters>;
  constexpr int num_b = kCount<typename Op::BRegisters>;
  constexpr int row_words = num_b * 4;  // 32-bit words of a row of a or b
  const int group = static_cast<int>(threadIdx.x) / 4;
  const int quad = static_cast<int>(threadIdx.x) % 4;
  uint32_t a_registers[num_a], b_registers[num_b];
  std::remove_extent_t<typename Op::CRegisters> c_registers[4], d_registers[4];
  for (int r = 0; r < num_a; ++r) a_registers[r] = a[(group + r % 2 * 8) * row_words + r / 2 * 4 + quad];
  for (int r = 0; r < num_b; ++r) b_registers[r] = b[group * row_words + r * 4 + quad];
  for (int r = 0; r < 4; ++r) std::memcpy(&c_registers[r], c + (group + r / 2 * 8) * 8 + quad * 2 + r % 2, 4);
  call_fma<Op>(d_registers, a_registers, b_registers, c_registers);
  for (int r = 0; r < 4; ++r) std::memcpy(d + (group + r / 2 * 8) * 8 + quad * 2 + r % 2, &d_registers[r], 4);
}

__global__ void mma_double_kernel(const double* a, const double* b, const double* c, double* d) {
  const int group = static_cast<int>(threadIdx.x) / 4;
  const int quad = static_cast<int>(threadIdx.x) % 4;
  const int at = group * 8 + quad * 2;
  cute::SM80_8x8x4_F64F64F64F64_TN::fma(d[at], d[at + 1], a[group * 4 + quad], b[group * 4 + quad], c[at], c[at + 1]);
}

using RunMma = void (*)(uintptr_t, uintptr_t, uintptr_t, uintptr_t);

template <class Op>
void run_mma_as(uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d) {
  cuda::launch<&mma_kernel<Op>>(LaunchConfig{.grid = {1}, .threads = 32, .name = "mma"}, pointer<const uint32_t>(a),
                                pointer<const uint32_t>(b), pointer<const uint32_t>(c), pointer<uint32_t>(d));
}

const std::map<std::string, RunMma>& mma_ops() {
#define TOKCORE_OP(name)           \
  {                                \
    #name, &run_mma_as<cute::name> \
  }
  static const std::map<std::string, RunMma> ops = {
      TOKCORE_OP(SM80_16x8x8_F32F16F16F32_TN),    TOKCORE_OP(SM80_16x8x16_F32F16F16F32_TN),
      TOKCORE_OP(SM80_16x8x8_F32BF16BF16F32_TN),  TOKCORE_OP(SM80_16x8x16_F32BF16BF16F32_TN),
      TOKCORE_OP(SM80_16x8x4_F32TF32TF32F32_TN),  TOKCORE_OP(SM80_16x8x8_F32TF32TF32F32_TN),
      TOKCORE_OP(SM80_16x8x16_S32S8S8S32_TN),     TOKCORE_OP(SM80_16x8x32_S32S8S8S32_TN),
      TOKCORE_OP(SM80_16x8x16_S32S8U8S32_TN),     TOKCORE_OP(SM80_16x8x32_S32S8U8S32_TN),
      TOKCORE_OP(SM80_16x8x16_S32U8S8S32_TN),     TOKCORE_OP(SM80_16x8x32_S32U8S8S32_TN),
      TOKCORE_OP(SM80_16x8x16_S32U8U8S32_TN),     TOKCORE_OP(SM80_16x8x32_S32U8U8S32_TN),
      TOKCORE_OP(SM89_16x8x32_F32E4M3E4M3F32_TN), TOKCORE_OP(SM89_16x8x32_F32E4M3E5M2F32_TN),
      TOKCORE_OP(SM89_16x8x32_F32E5M2E5M2F32_TN), TOKCORE_OP(SM89_16x8x32_F32E5M2E4M3F32_TN),
  };
#undef TOKCORE_OP
  return ops;
}

void run_mma(const std::string& op, uintptr_t a, uintptr_t b, uintptr_t c, uintptr_t d) {
  if (op == "SM80_8x8x4_F64F64F64F64_TN") {
    cuda::launch<&mma_double_kernel>(LaunchConfig{.grid = {1}, .threads = 32, .name = "mma"}, pointer<const double>(a),
                                     pointer<const double>(b), pointer<const double>(c), pointer<double>(d));
  } else {
    mma_ops().at(op)(a, b, c, d);
  }
}

// in [32, 8] 16-bit rows, four 8 x 8 matrices; out [num, 32] registers.
template <class Op, int kNum>
__global__ void ldmatrix_kernel(const uint16_t* in, uint32_t* out, int row_offset) {
  TOKCORE_SHARED_MEMORY(shared);
  auto* rows = reinterpret_cast<uint16_t*>(shared);
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = 0; i < 8; ++i) rows[lane * 8 + i] = in[lane * 8 + i];
  __syncwarp();
  const auto& row = *reinterpret_cast<const cute::uint128_t*>(shared + lane * 16 + row_offset);
  uint32_t r[4];
  if constexpr (kNum == 1) {
    Op::copy(row, r[0]);
  } else if constexpr (kNum == 2) {
    Op::copy(row, r[0], r[1]);
  } else {
    Op::copy(row, r[0], r[1], r[2], r[3]);
  }
  for (int i = 0; i < kNum; ++i) out[32 * i + lane] = r[i];
}

void run_ldmatrix(int num, bool transposed, uintptr_t in, uintptr_t out, int row_offset) {
  const LaunchConfig config{.grid = {1}, .threads = 32, .shared_bytes = 512, .name = "ldmatrix"};
  const auto run = [&]<class Op, int kNum>() {
    cuda::launch<&ldmatrix_kernel<Op, kNum>>(config, pointer<const uint16_t>(in), pointer<uint32_t>(out), row_offset);
  };
  if (num == 1) {
    transposed ? run.operator()<cute::SM75_U16x2_LDSM_T, 1>() : run.operator()<cute::SM75_U32x1_LDSM_N, 1>();
  } else if (num == 2) {
    transposed ? run.operator()<cute::SM75_U16x4_LDSM_T, 2>() : run.operator()<cute::SM75_U32x2_LDSM_N, 2>();
  } else {
    transposed ? run.operator()<cute::SM75_U16x8_LDSM_T, 4>() : run.operator()<cute::SM75_U32x4_LDSM_N, 4>();
  }
}

// How the copies of cp_async_kernel are synchronized, right or wrong.
enum class Ending { kWaitAll, kWaitGroups, kNoWait, kNoCommit, kNothingToWaitFor };

// Thread i copies elements i and 32 + i of in to out through shared memory, as two groups, where i < valid.
template <class Vector, Ending kEnding>
__global__ void cp_async_kernel(const Vector* in, Vector* out, int valid) {
  TOKCORE_SHARED_MEMORY(shared);
  auto* staging = reinterpret_cast<Vector*>(shared);
  const int i = static_cast<int>(threadIdx.x);
  for (int group = 0; group < 2 && kEnding != Ending::kNothingToWaitFor; ++group) {
    const int at = 32 * group + i;
    cute::SM80_CP_ASYNC_CACHEALWAYS_ZFILL<Vector>::copy(in[at], staging[at], at < valid);
    if (kEnding != Ending::kNoCommit) cute::cp_async_fence();
  }
  if constexpr (kEnding == Ending::kNothingToWaitFor) {
    cute::cp_async_fence();
    return;
  }
  if constexpr (kEnding == Ending::kWaitAll) cute::cp_async_wait<0>();
  if constexpr (kEnding == Ending::kWaitGroups) {
    cute::cp_async_wait<1>();
    out[i] = staging[i];
    cute::cp_async_fence();  // an empty group: both copies are older now
    cute::cp_async_wait<1>();
  }
  out[i] = staging[i];
  out[32 + i] = staging[32 + i];
}

template <class Vector>
void run_cp_async_as(const std::string& ending, uintptr_t in, uintptr_t out, int valid) {
  const LaunchConfig config{.grid = {1}, .threads = 32, .shared_bytes = 64 * sizeof(Vector), .name = "cp_async"};
  const auto run = [&]<Ending kEnding>() {
    cuda::launch<&cp_async_kernel<Vector, kEnding>>(config, pointer<const Vector>(in), pointer<Vector>(out), valid);
  };
  if (ending == "wait_all") return run.template operator()<Ending::kWaitAll>();
  if (ending == "wait_groups") return run.template operator()<Ending::kWaitGroups>();
  if (ending == "no_wait") return run.template operator()<Ending::kNoWait>();
  if (ending == "no_commit") return run.template operator()<Ending::kNoCommit>();
  if (ending == "nothing_to_wait_for") return run.template operator()<Ending::kNothingToWaitFor>();
  throw std::invalid_argument(ending);
}

void run_cp_async(const std::string& ending, int bytes, uintptr_t in, uintptr_t out, int valid) {
  if (bytes == 4) return run_cp_async_as<uint32_t>(ending, in, out, valid);
  if (bytes == 8) return run_cp_async_as<uint64_t>(ending, in, out, valid);
  run_cp_async_as<cute::uint128_t>(ending, in, out, valid);
}

const Bindings bindings([](pybind11::module_& m) {
  m.def("mma_ops", [] {
    pybind11::list names;
    for (const auto& [name, run] : mma_ops()) names.append(name);
    return names;
  });
  m.def("mma", &run_mma, WithoutGil());
  m.def("ldmatrix", &run_ldmatrix, WithoutGil());
  m.def("cp_async", &run_cp_async, WithoutGil());
});

}  // namespace
}  // namespace tokcore::simt
