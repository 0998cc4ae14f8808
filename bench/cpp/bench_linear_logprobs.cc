// The kernels of linear_logprobs without torch: cmake -DTOKCORE_BENCH=ON, then build/bench/cpp/bench_linear_logprobs.
// Set TOKCORE_MAX_ISA to time a lower instruction-set level.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "tokcore/cpu/isa.h"
#include "tokcore/cpu/measure_peak.h"
#include "tokcore/cross_entropy/linear_logprobs.h"

namespace {

using tokcore::DType;

tokcore::cpu::Threads std_threads(int count) {
  return {count, [](int workers, void (*body)(void*, int), void* context) {
            std::vector<std::thread> others;
            for (int worker = 1; worker < workers; ++worker) others.emplace_back(body, context, worker);
            body(context, 0);
            for (std::thread& other : others) other.join();
          }};
}

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

// T positions, C hidden size, V vocabulary, bf16.
struct Problem {
  Problem(int64_t positions, int64_t hidden, int64_t vocabulary)
      : e(random_bfloat16(positions * hidden, 1.0f)),
        c(random_bfloat16(vocabulary * hidden, 0.03f)),
        indices(static_cast<size_t>(positions), vocabulary / 2),
        active(static_cast<size_t>(positions)),
        lse(static_cast<size_t>(positions)),
        gathered(static_cast<size_t>(positions)) {
    for (size_t i = 0; i < active.size(); ++i) active[i] = static_cast<int32_t>(i);
    base.dtype = DType::kBFloat16;
    base.e = e.data();
    base.c = c.data();
    base.stride_e_row = base.stride_c_row = hidden;
    base.indices = indices.data();
    base.active_positions = active.data();
    base.num_positions = base.num_active = positions;
    base.hidden_size = hidden;
    base.vocab_size = vocabulary;
    base.num_indices = 1;
    base.temperature = 1.0f;
  }
  tokcore::LinearLogprobsForwardParams forward() {
    tokcore::LinearLogprobsForwardParams params = {};
    static_cast<tokcore::LinearLogitsParams&>(params) = base;
    params.lse = lse.data();
    params.gathered = gathered.data();
    return params;
  }
  std::vector<uint16_t> e, c;
  std::vector<int64_t> indices;
  std::vector<int32_t> active;
  std::vector<float> lse, gathered;
  tokcore::LinearLogitsParams base = {};
};

void count_flops(benchmark::State& state, double factor) {
  const double work = factor * static_cast<double>(state.range(0) * state.range(1) * state.range(2));
  state.counters["FLOP/s"] = benchmark::Counter(work, benchmark::Counter::kIsIterationInvariantRate);
}

void forward(benchmark::State& state) {
  Problem problem(state.range(0), state.range(1), state.range(2));
  const tokcore::cpu::Threads threads = std_threads(static_cast<int>(std::thread::hardware_concurrency()));
  const tokcore::LinearLogprobsForwardParams params = problem.forward();
  for (auto _ : state) tokcore::run_linear_logprobs_forward_cpu(params, threads);
  count_flops(state, 2.0);
}

void backward(benchmark::State& state) {
  Problem problem(state.range(0), state.range(1), state.range(2));
  const tokcore::cpu::Threads threads = std_threads(static_cast<int>(std::thread::hardware_concurrency()));
  tokcore::run_linear_logprobs_forward_cpu(problem.forward(), threads);
  const std::vector<float> probability(problem.lse.size(), 1.0f), target(problem.lse.size(), -1.0f);
  std::vector<uint16_t> grad_e(problem.e.size()), grad_c(problem.c.size());
  tokcore::LinearLogprobsBackwardParams params = {};
  static_cast<tokcore::LinearLogitsParams&>(params) = problem.base;
  params.logits = problem.gathered.data();
  params.lse = problem.lse.data();
  params.grad_prob = probability.data();
  params.grad_logits = target.data();
  params.grad_e = grad_e.data();
  params.grad_c = grad_c.data();
  for (auto _ : state) tokcore::run_linear_logprobs_backward_cpu(params, threads);
  count_flops(state, 6.0);
}

BENCHMARK(forward)->Args({1, 1024, 32768})->Args({64, 1024, 32768})->Args({1024, 1024, 32768})->UseRealTime();
BENCHMARK(backward)->Args({1024, 1024, 32768})->UseRealTime();

}  // namespace

int main(int argc, char** argv) {
  benchmark::AddCustomContext("instruction-set level", tokcore::cpu::name_of(tokcore::cpu::active_isa()));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
