// The launchers of linear_logprobs on CUDA without torch: cmake -DTOKCORE_BENCH=ON on a machine with nvcc, then
// build/bench/cpp/bench_linear_logprobs_cuda on one with a GPU. Times are those of CUDA events round all of a call's
// launches.
#include <benchmark/benchmark.h>
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#include "tokcore/cross_entropy/linear_logprobs_cuda.h"

namespace {

using tokcore::DType;

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

// Device memory that frees itself.
class Buffer {
 public:
  explicit Buffer(size_t bytes) { check(cudaMalloc(&data_, bytes == 0 ? 1 : bytes), "cudaMalloc"); }
  template <class T>
  explicit Buffer(const std::vector<T>& values) : Buffer(values.size() * sizeof(T)) {
    check(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  ~Buffer() { cudaFree(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
};

std::vector<uint16_t> random_bfloat16(int64_t count, float scale) {
  std::mt19937 generator(7);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<uint16_t> values(static_cast<size_t>(count));
  for (uint16_t& value : values) {
    const float x = normal(generator);
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    value = static_cast<uint16_t>(bits >> 16);
  }
  return values;
}

tokcore::CudaMachine current_machine() {
  cudaDeviceProp properties;
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
  return {properties.major * 10 + properties.minor, properties.multiProcessorCount, properties.l2CacheSize};
}

// T positions, C hidden size, V vocabulary, bf16, all positions active.
struct Problem {
  Problem(int64_t positions, int64_t hidden, int64_t vocabulary)
      : e(random_bfloat16(positions * hidden, 1.0f)),
        c(random_bfloat16(vocabulary * hidden, 0.03f)),
        indices(std::vector<int64_t>(static_cast<size_t>(positions), vocabulary / 2)),
        lse(static_cast<size_t>(positions) * sizeof(float)),
        gathered(static_cast<size_t>(positions) * sizeof(float)) {
    forward.dtype = DType::kBFloat16;
    forward.e = e.as<void>();
    forward.c = c.as<void>();
    forward.stride_e_row = forward.stride_c_row = hidden;
    forward.indices = indices.as<int64_t>();
    forward.num_positions = positions;
    forward.hidden_size = hidden;
    forward.vocab_size = vocabulary;
    forward.num_indices = 1;
    forward.temperature = 1.0f;
    forward.lse = lse.as<float>();
    forward.gathered = gathered.as<float>();
  }
  Buffer e, c, indices, lse, gathered;
  tokcore::LinearLogprobsForwardParams forward = {};
};

// Times call() by events.
template <class Call>
void time_by_events(benchmark::State& state, double flops_factor, Call&& call) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  call();
  for (auto _ : state) {
    check(cudaEventRecord(begin), "cudaEventRecord");
    call();
    check(cudaEventRecord(end), "cudaEventRecord");
    check(cudaEventSynchronize(end), "cudaEventSynchronize");
    float milliseconds = 0.0f;
    check(cudaEventElapsedTime(&milliseconds, begin, end), "cudaEventElapsedTime");
    state.SetIterationTime(static_cast<double>(milliseconds) * 1e-3);
  }
  const double work = flops_factor * static_cast<double>(state.range(0) * state.range(1) * state.range(2));
  state.counters["FLOP/s"] = benchmark::Counter(work, benchmark::Counter::kIsIterationInvariantRate);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
}

void forward(benchmark::State& state) {
  const Problem problem(state.range(0), state.range(1), state.range(2));
  const tokcore::CudaMachine machine = current_machine();
  const Buffer workspace(tokcore::linear_logprobs_forward_workspace_cuda(problem.forward, machine));
  time_by_events(state, 2.0, [&] {
    tokcore::run_linear_logprobs_forward_cuda(problem.forward, {}, {machine, workspace.as<void>(), nullptr});
  });
}

void backward(benchmark::State& state) {
  const Problem problem(state.range(0), state.range(1), state.range(2));
  const tokcore::CudaMachine machine = current_machine();
  {
    const Buffer workspace(tokcore::linear_logprobs_forward_workspace_cuda(problem.forward, machine));
    tokcore::run_linear_logprobs_forward_cuda(problem.forward, {}, {machine, workspace.as<void>(), nullptr});
    check(cudaDeviceSynchronize(), "forward");
  }
  const size_t positions = static_cast<size_t>(state.range(0));
  const Buffer probability(std::vector<float>(positions, 1.0f)), target(std::vector<float>(positions, -1.0f));
  const Buffer grad_e(positions * static_cast<size_t>(state.range(1)) * 2);
  const Buffer grad_c(static_cast<size_t>(state.range(1) * state.range(2)) * 2);
  tokcore::LinearLogprobsBackwardParams params = {};
  static_cast<tokcore::LinearLogitsParams&>(params) = problem.forward;
  params.logits = problem.gathered.as<float>();
  params.lse = problem.lse.as<float>();
  params.grad_prob = probability.as<float>();
  params.grad_logits = target.as<float>();
  params.grad_e = grad_e.as<void>();
  params.grad_c = grad_c.as<void>();
  const Buffer workspace(tokcore::linear_logprobs_backward_workspace_cuda(params, machine));
  time_by_events(state, 6.0, [&] {
    tokcore::run_linear_logprobs_backward_cuda(params, {}, {machine, workspace.as<void>(), nullptr});
  });
}

BENCHMARK(forward)->Args({1, 4096, 128256})->Args({8192, 2304, 256000})->Args({8192, 4096, 128256})->UseManualTime();
BENCHMARK(backward)->Args({8192, 2304, 256000})->Args({8192, 4096, 128256})->UseManualTime();

}  // namespace

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::fprintf(stderr, "bench_linear_logprobs_cuda: there is no CUDA device, so nothing is timed\n");
    return 0;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
