// Loops that keep one unit busy and nothing else. Compiled once per instruction-set level.
#include "tokcore/cpu/measure_peak.h"

#include <immintrin.h>
#include <time.h>
#include <unistd.h>

#include "tokcore/common/math.h"
#include "tokcore/cpu/block_product.h"
#include "tokcore/cpu/scratch.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Runs body(worker), which returns the work of one go, again and again; the sum of the workers' best rates.
template <class Body>
double rate(const Threads& threads, double seconds, Body&& body) {
  constexpr int kMostWorkers = 1024;
  const int workers = threads.count < kMostWorkers ? threads.count : kMostWorkers;
  double rates[kMostWorkers] = {};
  const double end = now() + seconds;
  Threads one_each = threads;
  one_each.count = workers;
  for_each_item(one_each, workers, [&](int64_t item, int) {
    double best = 0.0;
    do {
      const double start = now();
      const double work = body(item);
      const double reached = work / (now() - start);
      best = reached > best ? reached : best;
    } while (now() < end);
    rates[item] = best;
  });
  double sum = 0.0;
  for (int i = 0; i < workers; ++i) sum += rates[i];
  return sum;
}

double fma_fp32() {
  constexpr int kChains = 10;  // latency times issue width, with some to spare
  constexpr int kRounds = 200000;
  Vec sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = Vec(static_cast<float>(i));
  Vec factor(0.999f), addend(0.001f);
  for (int round = 0; round < kRounds; ++round) {
#pragma GCC unroll 10
    for (int i = 0; i < kChains; ++i) {
      sums[i] = fma(sums[i], factor, addend);
      asm volatile("" : "+x"(sums[i].v));
    }
  }
  return 2.0 * Vec::kLanes * kChains * kRounds;
}

#if defined(__AMX_BF16__)
double amx_tiles(bool int8) {
  constexpr int kRounds = 20000;
  TileState tiles;
  alignas(64) static const char zeros[1024] = {};
  _tile_loadd(4, zeros, 64);
  _tile_loadd(5, zeros, 64);
  _tile_loadd(6, zeros, 64);
  _tile_loadd(7, zeros, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int round = 0; round < kRounds; ++round) {
    if (int8) {
      _tile_dpbssd(0, 4, 6);
      _tile_dpbssd(1, 4, 7);
      _tile_dpbssd(2, 5, 6);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  return 4.0 * kRounds * 16 * 16 * (int8 ? 128 : 64);
}
#endif

// Twice the last-level cache, so that a pass finds nothing of the one before in it; a virtual machine reports its
// host's.
int64_t bytes_past_caches() {
  constexpr int64_t kLeast = int64_t{128} << 20, kMost = int64_t{2} << 30;
  const int64_t cache = max(int64_t{sysconf(_SC_LEVEL3_CACHE_SIZE)}, int64_t{sysconf(_SC_LEVEL2_CACHE_SIZE)});
  return min(max(2 * cache, kLeast), kMost);
}

// One pass of all workers at a time: the sum of rates that each reaches alone would be more than the memory gives.
double read_memory(const Threads& threads, double seconds) {
  constexpr int kStreams = 4;
  constexpr int64_t kLine = 64, kAhead = 32 * kLine;
  const int64_t bytes = bytes_past_caches() / threads.count / (kStreams * kLine) * (kStreams * kLine);
  const int64_t stream = bytes / kStreams;
  Scratch scratch(static_cast<size_t>(bytes * threads.count));
  for_each_item(threads, threads.count, [&](int64_t item, int) {
    float* own = reinterpret_cast<float*>(scratch.data() + item * bytes);
    for (int64_t i = 0; i < bytes / 4; ++i) own[i] = 1.0f;
  });
  double best = 0.0;
  const double end = now() + seconds;
  do {
    const double start = now();
    for_each_item(threads, threads.count, [&](int64_t item, int) {
      const char* own = scratch.data() + item * bytes;
      constexpr int kPerLine = static_cast<int>(kLine / (4 * Vec::kLanes));
      Vec sums[kStreams];
      for (Vec& sum : sums) sum = Vec(0.0f);
      for (int64_t at = 0; at < stream; at += kLine) {
#pragma GCC unroll 4
        for (int s = 0; s < kStreams; ++s) {
          const char* line = own + s * stream + at;
          _mm_prefetch(line + kAhead, _MM_HINT_T1);
          for (int i = 0; i < kPerLine; ++i)
            sums[s] += Vec::load(reinterpret_cast<const float*>(line) + i * Vec::kLanes);
        }
      }
      for (Vec& sum : sums) asm volatile("" : "+x"(sum.v));
    });
    const double reached = static_cast<double>(bytes * threads.count) / (now() - start);
    best = reached > best ? reached : best;
  } while (now() < end);
  return best;
}

}  // namespace

double measure_peak(PeakKind kind, double seconds, const Threads& threads) {
  switch (kind) {
    case PeakKind::kFmaFp32:
      return rate(threads, seconds, [](int64_t) { return fma_fp32(); });
    case PeakKind::kRead:
      return read_memory(threads, seconds);
    case PeakKind::kAmxBf16:
    case PeakKind::kAmxInt8:
#if defined(__AMX_BF16__)
      return rate(threads, seconds, [&](int64_t) { return amx_tiles(kind == PeakKind::kAmxInt8); });
#else
      return 0.0;
#endif
  }
  __builtin_unreachable();
}

}  // namespace tokcore::cpu::TOKCORE_ISA
