// The random numbers of sampling: Philox by (seed, stream, index, position), the same bits on every backend.
//
// A position is that of the token to be drawn in its sequence. Streams are disjoint, so that what a drafter drew with
// the noise of tokens is independent of the tests that accept its drafts.
#pragma once

#include "tokcore/common/exact_math.h"
#include "tokcore/common/philox.h"

namespace tokcore::speculative {

enum class Stream : uint32_t {
  kTokens,   // index: token / 2; a token has 64 of the 128 bits
  kAccepts,  // index: node
  kDraws,    // index: 0
  kDrafts,   // as kTokens, for children that share no noise with the target; the i-th of independent draws: kDrafts + i
};

TOKCORE_SHARED_FUNCTION PhiloxWords random_words(int64_t seed, Stream stream, int64_t index, int64_t position) {
  return philox(static_cast<uint64_t>(seed),
                static_cast<uint64_t>(stream) << 32 | static_cast<uint64_t>(index & 0xffffffff),
                static_cast<uint64_t>(position));
}
TOKCORE_SHARED_FUNCTION uint64_t join_words(uint32_t high, uint32_t low) {
  return static_cast<uint64_t>(high) << 32 | low;
}
TOKCORE_SHARED_FUNCTION uint64_t random_bits(int64_t seed, Stream stream, int64_t index, int64_t position) {
  const PhiloxWords words = random_words(seed, stream, index, position);
  return join_words(words.word[0], words.word[1]);
}
TOKCORE_SHARED_FUNCTION uint64_t token_bits(int64_t seed, Stream stream, int64_t token, int64_t position) {
  const PhiloxWords words = random_words(seed, stream, token >> 1, position);
  return (token & 1) == 0 ? join_words(words.word[0], words.word[1]) : join_words(words.word[2], words.word[3]);
}

// One of 2^53 numbers in [0, 1), 0 among them.
TOKCORE_SHARED_FUNCTION double unit_interval(uint64_t bits) {
  return exact::mul(static_cast<double>(bits >> 11), 0x1p-53);
}

// Gumbel noise in units of ln 2, up to a constant: -log2(-log2(1 - x)) with x the middle of one of 2^64 parts of
// (0, 1), from -6.1 to 65.5. So the greatest noise is that of an event of probability 2^-64.
TOKCORE_SHARED_FUNCTION double middle_of_part(uint64_t bits) {
  return exact::mul(exact::add(static_cast<double>(bits >> 1), (bits & 1) != 0 ? 0.75 : 0.25), 0x1p-63);
}
TOKCORE_SHARED_FUNCTION double gumbel_log2(uint64_t bits) {
  const double x = middle_of_part(bits);
  const double waiting = x < 0.25 ? exact::minus_log2_complement(x) : -exact::log2(middle_of_part(~bits));
  return -exact::log2(waiting);
}

// floor(bits * total / 2^64): a number below total.
TOKCORE_SHARED_FUNCTION uint64_t below(uint64_t bits, uint64_t total) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(bits, total);
#else
  return static_cast<uint64_t>(static_cast<unsigned __int128>(bits) * total >> 64);
#endif
}

}  // namespace tokcore::speculative
