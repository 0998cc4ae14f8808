// Instruction-set levels. A kernel source is compiled once per level; the level is chosen once per process.
#pragma once

#include <string>
#include <vector>

namespace tokcore::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512, kAmx };  // each level holds the ones before it

const char* name_of(Isa isa);

// The highest level of this machine that the operating system lets us use.
Isa best_isa();

// The level in use: best_isa(), or less where the environment variable TOKCORE_MAX_ISA asks for less.
// Throws std::runtime_error if that variable names no level.
Isa active_isa();

// The levels this machine can run, lowest first.
std::vector<std::string> isa_levels();

}  // namespace tokcore::cpu

// Declares one function for every level: each lives in the namespace of its level.
#define TOKCORE_DECLARE_PER_ISA(declaration) \
  namespace baseline {                       \
  declaration;                               \
  }                                          \
  namespace avx2 {                           \
  declaration;                               \
  }                                          \
  namespace avx512 {                         \
  declaration;                               \
  }                                          \
  namespace amx {                            \
  declaration;                               \
  }

// Calls the function of the active level.
#define TOKCORE_CALL_ACTIVE_ISA(function, ...)                \
  switch (::tokcore::cpu::active_isa()) {                     \
    case ::tokcore::cpu::Isa::kBaseline:                      \
      return ::tokcore::cpu::baseline::function(__VA_ARGS__); \
    case ::tokcore::cpu::Isa::kAvx2:                          \
      return ::tokcore::cpu::avx2::function(__VA_ARGS__);     \
    case ::tokcore::cpu::Isa::kAvx512:                        \
      return ::tokcore::cpu::avx512::function(__VA_ARGS__);   \
    case ::tokcore::cpu::Isa::kAmx:                           \
      return ::tokcore::cpu::amx::function(__VA_ARGS__);      \
  }                                                           \
  __builtin_unreachable()
