// The kernel of decode_attention without torch: cmake -DTOKCORE_BENCH=ON, then build/bench/cpp/bench_decode_attention.
// Set TOKCORE_MAX_ISA to time a lower instruction-set level.
#include <benchmark/benchmark.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <thread>
#include <vector>

#include "tokcore/cpu/isa.h"
#include "tokcore/cpu/scratch.h"
#include "tokcore/kv_cache/decode_attention.h"

namespace {

using tokcore::BFloat16;

constexpr int64_t kPageSize = 64, kResidual = 128, kSinks = 4;
constexpr int64_t kHeads = 8, kGroup = 4, kHeadDim = 128;

tokcore::cpu::Threads std_threads(int count) {
  return {count, [](int workers, void (*body)(void*, int), void* context) {
            std::vector<std::thread> others;
            for (int worker = 1; worker < workers; ++worker) others.emplace_back(body, context, worker);
            body(context, 0);
            for (std::thread& other : others) other.join();
          }};
}

// Zeros on huge pages, as the caches that Python allocates lie on them.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count) : count_(static_cast<size_t>(count)) {
    constexpr size_t kHugePage = size_t{2} << 20;
    const size_t bytes = (count_ * sizeof(T) + kHugePage - 1) / kHugePage * kHugePage;
    data_.reset(static_cast<T*>(std::aligned_alloc(kHugePage, bytes)));
    if (data_ == nullptr) throw std::bad_alloc();
    tokcore::cpu::expect_large_writes(data_.get(), bytes);
    std::memset(data_.get(), 0, bytes);
  }
  T* data() { return data_.get(); }
  size_t size() const { return count_; }

 private:
  struct Free {
    void operator()(T* data) const { std::free(data); }
  };
  size_t count_;
  std::unique_ptr<T, Free> data_;
};

uint16_t bfloat16_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(bits >> 16);
}

void fill_normal(uint16_t* values, size_t count) {
  std::mt19937 generator(7);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> drawn(1 << 16);
  for (uint16_t& value : drawn) value = bfloat16_bits(normal(generator));
  for (size_t i = 0; i < count; ++i) values[i] = drawn[(i * 2654435761u >> 7) % drawn.size()];
}

// One sequence of `tokens`, all but sinks and window in pages of `bits` (16: bf16 numbers).
struct Problem {
  Problem(int64_t tokens, int64_t bits)
      : num_pages((tokens - kSinks - kResidual) / kPageSize),
        head_bytes(kPageSize * kHeadDim * bits / 8),
        k_pages(num_pages * kHeads * head_bytes),
        v_pages(num_pages * kHeads * head_bytes),
        scales(4 * num_pages * kHeads * kPageSize),
        recent(2 * kHeads * (kResidual + kPageSize + kSinks) * kHeadDim),
        q(kHeads * kGroup * kHeadDim),
        out(kHeads * kGroup * kHeadDim),
        table(num_pages),
        length(static_cast<int32_t>(tokens)),
        window_start(static_cast<int32_t>(kSinks + num_pages * kPageSize)),
        page_count(static_cast<int32_t>(num_pages)) {
    std::mt19937_64 generator(3);
    for (Buffer<uint8_t>* pages : {&k_pages, &v_pages}) {
      if (bits == 16) {
        fill_normal(reinterpret_cast<uint16_t*>(pages->data()), pages->size() / 2);
        continue;
      }
      for (size_t i = 0; i + 8 <= pages->size(); i += 8) {
        const uint64_t random = generator();
        std::memcpy(pages->data() + i, &random, 8);
      }
    }
    const int64_t each = num_pages * kHeads * kPageSize;
    const float levels = static_cast<float>((1 << (bits == 16 ? 8 : bits)) - 1);
    for (int64_t i = 0; i < 4 * each; ++i) {  // keys' scales and zeros, then the values': numbers in about [-3, 3]
      scales.data()[i] = bfloat16_bits(i / each % 2 == 0 ? 6.0f / levels : -3.0f);
    }
    fill_normal(recent.data(), recent.size());
    fill_normal(q.data(), q.size());
    for (int64_t i = 0; i < num_pages; ++i) table[static_cast<size_t>(i)] = static_cast<int32_t>(i);
    describe(bits, each);
  }

  void describe(int64_t bits, int64_t each) {
    tokcore::KvCacheParams& cache = params.cache;
    cache.dtype = tokcore::DType::kBFloat16;
    cache.num_sequences = 1;
    cache.num_heads = kHeads;
    cache.head_dim = kHeadDim;
    cache.page_size = kPageSize;
    cache.window_size = kResidual + kPageSize;
    cache.num_sinks = kSinks;
    uint16_t* at = recent.data();
    for (void** part : {&cache.window_k, &cache.window_v}) {
      *part = at;
      at += kHeads * cache.window_size * kHeadDim;
    }
    for (void** part : {&cache.sink_k, &cache.sink_v}) {
      *part = at;
      at += kHeads * kSinks * kHeadDim;
    }
    cache.lengths = &length;
    cache.window_starts = &window_start;
    tokcore::KvTier& tier = cache.tiers[tokcore::kHighTier];
    tier.num_pages = tier.table_width = num_pages;
    tier.page_table = table.data();
    tier.page_counts = &page_count;
    BFloat16* scale = reinterpret_cast<BFloat16*>(scales.data());
    for (tokcore::KvPages* pages : {&tier.keys, &tier.values}) {
      pages->coded = bits != 16;
      pages->scheme.bits = static_cast<int>(bits);
      pages->scheme.axis = tokcore::QuantAxis::kToken;
      pages->scheme.group = kHeadDim;
      pages->scheme.symmetric = false;
      pages->data = (pages == &tier.keys ? k_pages : v_pages).data();
      pages->head_bytes = head_bytes;
      pages->scale = scale;
      pages->zero = scale + each;
      pages->head_scales = kPageSize;
      scale += 2 * each;
    }
    params.q = q.data();
    params.stride_q_sequence = params.stride_q_query = kHeads * kGroup * kHeadDim;
    params.stride_q_head = kHeadDim;
    params.num_queries = 1;
    params.num_q_heads = kHeads * kGroup;
    params.scale = 0.088388348f;  // 1 / sqrt(128)
    params.out = out.data();
  }

  int64_t num_pages, head_bytes;
  Buffer<uint8_t> k_pages, v_pages;
  Buffer<uint16_t> scales, recent;
  std::vector<uint16_t> q, out;
  std::vector<int32_t> table;
  int32_t length, window_start, page_count;
  tokcore::DecodeAttentionParams params = {};
};

void decode(benchmark::State& state) {
  const int64_t tokens = state.range(0), bits = state.range(1);
  Problem problem(tokens, bits);
  const tokcore::cpu::Threads threads = std_threads(static_cast<int>(std::thread::hardware_concurrency()));
  for (auto _ : state) tokcore::run_decode_attention_cpu(problem.params, threads);
  const double bytes = 2.0 * static_cast<double>(tokens * kHeads * kHeadDim * bits) / 8.0;
  state.counters["bytes/s"] = benchmark::Counter(bytes, benchmark::Counter::kIsIterationInvariantRate);
}

BENCHMARK(decode)->ArgNames({"L", "bits"})->ArgsProduct({{4096, 32768}, {16, 8, 4, 2}})->UseRealTime();

}  // namespace

int main(int argc, char** argv) {
  benchmark::AddCustomContext("instruction-set level", tokcore::cpu::name_of(tokcore::cpu::active_isa()));
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
}
