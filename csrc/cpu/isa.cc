#include "tokcore/cpu/isa.h"

#include <sys/syscall.h>
#include <unistd.h>

#include <cstdlib>
#include <stdexcept>

#include <cpuid.h>

namespace tokcore::cpu {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "amx"};

// Linux hands out the 8 KB tile state only to processes that ask for it.
bool request_tile_permission() {
  constexpr int kArchReqXcompPerm = 0x1023;
  constexpr int kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
}

bool cpu_has_amx_bf16_int8() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return false;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;
  constexpr unsigned kAll = kAmxBf16 | kAmxTile | kAmxInt8;
  return (edx & kAll) == kAll;
}

Isa detect() {
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  if (!avx2) return Isa::kBaseline;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (!avx512) return Isa::kAvx2;
  const bool amx = cpu_has_amx_bf16_int8() && __builtin_cpu_supports("avx512bf16") &&
                   __builtin_cpu_supports("avx512vnni") && request_tile_permission();
  return amx ? Isa::kAmx : Isa::kAvx512;
}

Isa choose() {
  const char* wanted = std::getenv("TOKCORE_MAX_ISA");
  if (wanted == nullptr || *wanted == '\0') return best_isa();
  for (int level = 0; level < 4; ++level) {
    if (std::string(wanted) == kNames[level]) {
      return level < static_cast<int>(best_isa()) ? static_cast<Isa>(level) : best_isa();
    }
  }
  throw std::runtime_error(
      "tokcore: environment variable 'TOKCORE_MAX_ISA': expected one of baseline, avx2, avx512, amx, got " +
      std::string(wanted));
}

}  // namespace

const char* name_of(Isa isa) { return kNames[static_cast<int>(isa)]; }

Isa best_isa() {
  static const Isa best = detect();
  return best;
}

Isa active_isa() {
  static const Isa active = choose();
  return active;
}

std::vector<std::string> isa_levels() { return {kNames, kNames + static_cast<int>(best_isa()) + 1}; }

}  // namespace tokcore::cpu
