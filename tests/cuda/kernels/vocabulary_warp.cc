// The emulation of warp and block primitives, seen from kernels: each writes what every thread got.
#include <stdexcept>
#include <string>

#include <cute/arch/mma_sm70.hpp>
#include <cute/arch/mma_sm80.hpp>

#include "bindings.h"
#include "tokcore/cuda/kernel.h"
#include "tokcore/cuda/launch.h"

namespace tokcore::simt {
namespace {

constexpr unsigned kFull = 0xffffffff;

// out [14, 32] of the values 3 * lane + 1.
__global__ void shuffles_kernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  const int value = 3 * lane + 1;
  int row = 0;
  const auto store = [&](int result) { out[32 * row++ + lane] = result; };
  store(__shfl_sync(kFull, value, 5));
  store(__shfl_sync(kFull, value, lane + 1, 8));
  store(__shfl_up_sync(kFull, value, 3));
  store(__shfl_down_sync(kFull, value, 3, 16));
  store(__shfl_xor_sync(kFull, value, 17));
  store(static_cast<int>(__ballot_sync(kFull, lane % 3 == 0)));
  store(__all_sync(kFull, lane < 32));
  store(__all_sync(kFull, lane < 31));
  store(__any_sync(kFull, lane == 31));
  store(__any_sync(kFull, lane == 32));
  store(static_cast<int>(__match_any_sync(kFull, lane / 5)));
  store(__reduce_min_sync(kFull, lane - 7));
  store(static_cast<int>(__reduce_max_sync(kFull, static_cast<unsigned>(lane - 7))));
  const unsigned half = lane < 16 ? 0xffffu : 0xffff0000u;  // two rendezvous of one warp at once
  store(static_cast<int>(__reduce_add_sync(half, static_cast<unsigned>(value))));
}

// Sum of all threads' numbers by shuffles, shared memory and a barrier; out [blocks].
__global__ void block_sum_kernel(const float* in, float* out, int size) {
  TOKCORE_SHARED_MEMORY(shared);
  auto* partial = reinterpret_cast<float*>(shared);
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  float sum = i < size ? in[i] : 0.0f;
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kFull, sum, step);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f;
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kFull, sum, step);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
  }
}

// out [4]: __syncthreads_count, _and, _or, and an atomic sum over all threads.
__global__ void votes_kernel(int* out, int threshold) {
  const bool below = static_cast<int>(threadIdx.x) < threshold;
  const int count = __syncthreads_count(below);
  const int all = __syncthreads_and(below);
  const int any = __syncthreads_or(below);
  if (threadIdx.x == 0) {
    out[0] = count;
    out[1] = all;
    out[2] = any;
    out[3] = 0;
  }
  __syncthreads();
  atomicAdd(&out[3], static_cast<int>(threadIdx.x));
}

// out [64]: which thread came when; two warps that count on in shared memory.
__global__ void arrival_kernel(int* out) {
  TOKCORE_SHARED_MEMORY(shared);
  auto* arrived = reinterpret_cast<int*>(shared);
  if (threadIdx.x == 0) *arrived = 0;
  __syncthreads();
  out[atomicAdd(arrived, 1)] = static_cast<int>(threadIdx.x);
}

// What is wrong in each: the name. out is a buffer of one int per thread.
enum class Fault {
  kDivergentShuffle,
  kLaneOutsideMask,
  kMissingLane,
  kDivergentBarrier,
  kBarrierOfSomeWarps,
  kExitBeforeBarrier,
  kReadPastEnd,
  kWriteBeforeBeginning,
  kWritePastShared,
  kWriteBesideShared,
  kMixedWait,
  kEndlessRecursion,
  kDivisionByZero,
  kTrap,
  kEndlessPoll,
  kUnsupportedMma,
  kUnsupportedWrapper,
  kException,
};

__attribute__((noinline)) int recurse(int depth, volatile int* sink) {
  if (depth == 1 << 20) return 0;
  volatile int frame[256];
  frame[depth % 256] = depth;
  *sink = frame[depth % 256];
  return recurse(depth + 1, sink) + frame[depth % 256];
}

template <Fault kFault>
__global__ void faulty_kernel(int* out, int zero) {
  TOKCORE_SHARED_MEMORY(shared);
  const int thread = static_cast<int>(threadIdx.x);
  const int lane = thread % 32;
  int value = thread;
  if constexpr (kFault == Fault::kDivergentShuffle) {
    if (lane < 16) {
      value = __shfl_xor_sync(kFull, value, 1);
    } else {
      value = __shfl_xor_sync(kFull, value, 2);
    }
  } else if constexpr (kFault == Fault::kLaneOutsideMask) {
    value = __shfl_sync(0x0000ffffu, value, 0);
  } else if constexpr (kFault == Fault::kMissingLane) {
    if (lane == 7) return;
    __syncwarp();
  } else if constexpr (kFault == Fault::kDivergentBarrier) {
    if (lane < 16) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  } else if constexpr (kFault == Fault::kBarrierOfSomeWarps) {
    if (thread < 32) __syncthreads();
  } else if constexpr (kFault == Fault::kExitBeforeBarrier) {
    if (thread == 40) return;
    __syncthreads();
  } else if constexpr (kFault == Fault::kReadPastEnd) {
    value = out[blockDim.x + lane];
  } else if constexpr (kFault == Fault::kWriteBeforeBeginning) {
    if (thread == 0) out[-1] = 0;
  } else if constexpr (kFault == Fault::kWritePastShared) {
    shared[64 * 1024 + thread] = 0;
  } else if constexpr (kFault == Fault::kWriteBesideShared) {
    shared[blockDim.x * 4 + lane] = 0;  // just past the end, where no page ends
  } else if constexpr (kFault == Fault::kMixedWait) {
    if (lane == 0) {
      __syncthreads();
    } else {
      __syncwarp();
    }
  } else if constexpr (kFault == Fault::kEndlessRecursion) {
    value = recurse(0, out + thread);
  } else if constexpr (kFault == Fault::kDivisionByZero) {
    value = thread / zero;
  } else if constexpr (kFault == Fault::kTrap) {
    if (thread == 3) __trap();
  } else if constexpr (kFault == Fault::kEndlessPoll) {
    while (*static_cast<volatile int*>(&out[thread]) != 0) __nanosleep(100);
  } else if constexpr (kFault == Fault::kUnsupportedMma) {
    uint32_t d[2];
    cute::SM80_16x8x16_F16F16F16F16_TN::fma(d[0], d[1], 0, 0, 0, 0, 0, 0, 0, 0);
  } else if constexpr (kFault == Fault::kUnsupportedWrapper) {
    uint32_t d[4];
    cute::SM70_8x8x4_F16F16F16F16_TN::fma(d[0], d[1], d[2], d[3], 0, 0, 0, 0, 0, 0, 0, 0);
  } else if constexpr (kFault == Fault::kException) {
    throw std::runtime_error("thrown by the kernel");
  }
  out[thread] = value;
}

using cuda::LaunchConfig;

template <Fault kFault>
void run_fault_as(const std::string& name, int* out) {
  cuda::launch<&faulty_kernel<kFault>>(
      LaunchConfig{.grid = {1}, .threads = 128, .shared_bytes = 128 * 4, .name = name.c_str()}, out, 0);
}

void run_fault(const std::string& name, uintptr_t out) {
  static constexpr std::pair<const char*, void (*)(const std::string&, int*)> kFaults[] = {
      {"divergent_shuffle", &run_fault_as<Fault::kDivergentShuffle>},
      {"lane_outside_mask", &run_fault_as<Fault::kLaneOutsideMask>},
      {"missing_lane", &run_fault_as<Fault::kMissingLane>},
      {"divergent_barrier", &run_fault_as<Fault::kDivergentBarrier>},
      {"barrier_of_some_warps", &run_fault_as<Fault::kBarrierOfSomeWarps>},
      {"exit_before_barrier", &run_fault_as<Fault::kExitBeforeBarrier>},
      {"read_past_end", &run_fault_as<Fault::kReadPastEnd>},
      {"write_before_beginning", &run_fault_as<Fault::kWriteBeforeBeginning>},
      {"write_past_shared", &run_fault_as<Fault::kWritePastShared>},
      {"write_beside_shared", &run_fault_as<Fault::kWriteBesideShared>},
      {"mixed_wait", &run_fault_as<Fault::kMixedWait>},
      {"endless_recursion", &run_fault_as<Fault::kEndlessRecursion>},
      {"division_by_zero", &run_fault_as<Fault::kDivisionByZero>},
      {"trap", &run_fault_as<Fault::kTrap>},
      {"endless_poll", &run_fault_as<Fault::kEndlessPoll>},
      {"unsupported_mma", &run_fault_as<Fault::kUnsupportedMma>},
      {"unsupported_wrapper", &run_fault_as<Fault::kUnsupportedWrapper>},
      {"exception", &run_fault_as<Fault::kException>},
  };
  for (const auto& [text, run] : kFaults) {
    if (name == text) return run(name, pointer<int>(out));
  }
  throw std::invalid_argument("no fault is called " + name);
}

const Bindings bindings([](pybind11::module_& m) {
  m.def(
      "warp_shuffles",
      [](uintptr_t out) {
        cuda::launch<&shuffles_kernel>(LaunchConfig{.grid = {1}, .threads = 32, .name = "shuffles"}, pointer<int>(out));
      },
      WithoutGil());
  m.def(
      "block_sum",
      [](uintptr_t in, uintptr_t out, int size, unsigned blocks, unsigned threads) {
        cuda::launch<&block_sum_kernel>(
            LaunchConfig{.grid = {blocks}, .threads = threads, .shared_bytes = 128, .name = "block_sum"},
            pointer<const float>(in), pointer<float>(out), size);
      },
      WithoutGil());
  m.def(
      "block_votes",
      [](uintptr_t out, int threshold) {
        cuda::launch<&votes_kernel>(LaunchConfig{.grid = {1}, .threads = 96, .name = "votes"}, pointer<int>(out),
                                    threshold);
      },
      WithoutGil());
  m.def(
      "arrival_order",
      [](uintptr_t out) {
        cuda::launch<&arrival_kernel>(LaunchConfig{.grid = {1}, .threads = 64, .shared_bytes = 4, .name = "arrival"},
                                      pointer<int>(out));
      },
      WithoutGil());
  m.def("run_fault", &run_fault, WithoutGil());
  m.def(
      "launch_shape",
      [](unsigned x, unsigned y, unsigned threads, size_t shared_bytes, unsigned cluster, uintptr_t out) {
        cuda::launch<&votes_kernel>(
            LaunchConfig{
                .grid = {x, y}, .threads = threads, .shared_bytes = shared_bytes, .cluster = cluster, .name = "shape"},
            pointer<int>(out), 1);
      },
      WithoutGil());
});

}  // namespace
}  // namespace tokcore::simt
