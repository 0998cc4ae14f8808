// Random bits by counter: Philox4x32 with ten rounds. The same bits wherever and in whatever order they are asked for.
// Functions are static: each instruction-set level keeps its own code of them.
// Salmon, Moraes, Dror, Shaw: Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011).
#pragma once

#include <cstdint>

namespace tokcore {

// On a GPU a call would keep registers in local memory.
#if defined(__CUDACC__)
#define TOKCORE_PHILOX_FUNCTION static __host__ __device__ __forceinline__ constexpr
#else
#define TOKCORE_PHILOX_FUNCTION static constexpr
#endif

struct PhiloxWords {
  uint32_t word[4];
};

TOKCORE_PHILOX_FUNCTION PhiloxWords philox(uint64_t seed, uint64_t counter_low, uint64_t counter_high) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  PhiloxWords x = {{static_cast<uint32_t>(counter_low), static_cast<uint32_t>(counter_low >> 32),
                    static_cast<uint32_t>(counter_high), static_cast<uint32_t>(counter_high >> 32)}};
  for (int round = 0; round < 10; ++round) {
    const uint64_t left = uint64_t{0xd2511f53} * x.word[0], right = uint64_t{0xcd9e8d57} * x.word[2];
    x = {{static_cast<uint32_t>(right >> 32) ^ x.word[1] ^ key0, static_cast<uint32_t>(right),
          static_cast<uint32_t>(left >> 32) ^ x.word[3] ^ key1, static_cast<uint32_t>(left)}};
    key0 += 0x9e3779b9;
    key1 += 0xbb67ae85;
  }
  return x;
}

// The middle of one of 2^32 equal parts of (0, 1).
TOKCORE_PHILOX_FUNCTION double uniform_of(uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; }

}  // namespace tokcore
