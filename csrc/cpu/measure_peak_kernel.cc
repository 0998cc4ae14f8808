// Loops that keep one unit busy and nothing else. Compiled once per instruction-set level.
#include "tokcore/cpu/measure_peak.h"

#include <time.h>

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

double read_memory(const Threads& threads, double seconds) {
  constexpr int64_t kBytesPerWorker = int64_t{64} << 20;
  constexpr int64_t kFloats = kBytesPerWorker / 4;
  Scratch scratch(static_cast<size_t>(kBytesPerWorker * threads.count));
  float* data = reinterpret_cast<float*>(scratch.data());
  for_each_item(threads, threads.count, [&](int64_t item, int) {
    for (int64_t i = 0; i < kFloats; ++i) data[item * kFloats + i] = 1.0f;
  });
  return rate(threads, seconds, [&](int64_t item) {
    const float* own = data + item * kFloats;
    constexpr int kStreams = 4;
    Vec sums[kStreams];
    for (int s = 0; s < kStreams; ++s) sums[s] = Vec(0.0f);
    for (int64_t i = 0; i < kFloats / kStreams; i += Vec::kLanes) {
      for (int s = 0; s < kStreams; ++s) {
        const float* at = own + s * (kFloats / kStreams) + i;
        __builtin_prefetch(at + 512);
        sums[s] += Vec::load(at);
      }
    }
    for (int s = 0; s < kStreams; ++s) asm volatile("" : "+x"(sums[s].v));
    return static_cast<double>(kBytesPerWorker);
  });
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
