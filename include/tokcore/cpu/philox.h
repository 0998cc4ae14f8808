// Philox (common/philox.h) of several counters at a time.
#pragma once

#include "tokcore/common/philox.h"
#include "tokcore/cpu/vec.h"

namespace tokcore::cpu::TOKCORE_ISA {

// Lanes of 64 bits, each with a word of 32 bits in its lower half.
#if defined(__AVX512F__)
struct Words {
  static constexpr int kLanes = 8;
  __m512i v;
  static Words all(uint64_t value) { return {_mm512_set1_epi64(static_cast<int64_t>(value))}; }
  static Words counting(uint64_t first) {
    return {_mm512_add_epi64(all(first).v, _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7))};
  }
  void store(uint64_t* to) const { _mm512_storeu_si512(to, v); }
};
inline Words product(Words a, Words b) { return {_mm512_mul_epu32(a.v, b.v)}; }
inline Words upper(Words a) { return {_mm512_srli_epi64(a.v, 32)}; }
inline Words operator^(Words a, Words b) { return {_mm512_xor_si512(a.v, b.v)}; }
#elif defined(__AVX2__)
struct Words {
  static constexpr int kLanes = 4;
  __m256i v;
  static Words all(uint64_t value) { return {_mm256_set1_epi64x(static_cast<int64_t>(value))}; }
  static Words counting(uint64_t first) { return {_mm256_add_epi64(all(first).v, _mm256_setr_epi64x(0, 1, 2, 3))}; }
  void store(uint64_t* to) const { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v); }
};
inline Words product(Words a, Words b) { return {_mm256_mul_epu32(a.v, b.v)}; }
inline Words upper(Words a) { return {_mm256_srli_epi64(a.v, 32)}; }
inline Words operator^(Words a, Words b) { return {_mm256_xor_si256(a.v, b.v)}; }
#else
struct Words {
  static constexpr int kLanes = 2;
  __m128i v;
  static Words all(uint64_t value) { return {_mm_set1_epi64x(static_cast<int64_t>(value))}; }
  static Words counting(uint64_t first) { return {_mm_add_epi64(all(first).v, _mm_set_epi64x(1, 0))}; }
  void store(uint64_t* to) const { _mm_storeu_si128(reinterpret_cast<__m128i*>(to), v); }
};
inline Words product(Words a, Words b) { return {_mm_mul_epu32(a.v, b.v)}; }
inline Words upper(Words a) { return {_mm_srli_epi64(a.v, 32)}; }
inline Words operator^(Words a, Words b) { return {_mm_xor_si128(a.v, b.v)}; }
#endif

// Words 0 and 2 of philox(seed, counter_low + lane, counter_high) for kLanes lanes, in the lower halves of the lanes;
// the lower half of counter_low must not overflow within them.
inline void philox_words_0_2(uint64_t seed, uint64_t counter_low, uint64_t counter_high, Words* word0, Words* word2) {
  uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
  const Words left_factor = Words::all(0xd2511f53), right_factor = Words::all(0xcd9e8d57);
  // Only the lower halves are read by the products, so the upper ones may hold anything.
  Words x0 = Words::counting(counter_low & 0xffffffff), x1 = Words::all(counter_low >> 32);
  Words x2 = Words::all(counter_high & 0xffffffff), x3 = Words::all(counter_high >> 32);
  for (int round = 0; round < 10; ++round) {
    const Words left = product(left_factor, x0), right = product(right_factor, x2);
    x0 = upper(right) ^ x1 ^ Words::all(key0);
    x2 = upper(left) ^ x3 ^ Words::all(key1);
    x1 = right;
    x3 = left;
    key0 += 0x9e3779b9;
    key1 += 0xbb67ae85;
  }
  *word0 = x0;
  *word2 = x2;
}

}  // namespace tokcore::cpu::TOKCORE_ISA
