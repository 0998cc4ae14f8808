// Codes of 8, 4 or 2 bits in 32-bit words as operands of 16-bit products.
//
// A word holds four bytes of several planes: `bits` bits of plane p from bit p * bits on. With the exponent of 1024 put
// above the bits of a plane, bytes 0 and 2 are the numbers 1024 + code * 2^shift in fp16, and so are bytes 1 and 3 of
// the word moved by eight. One multiply-add makes exact codes around the middle of them: an instruction a code.
#pragma once

#include "tokcore/common/quantization.h"
#include "tokcore/cuda/ptx.h"

namespace tokcore::cuda {

// The same fp16 number in both halves of a word.
TOKCORE_DEVICE uint32_t half_pair(float value) { return ptx::pack_f16(value, value); }

class CodePlane {
 public:
  // The plane whose codes begin at bit `shift` of a byte.
  TOKCORE_DEVICE CodePlane(int bits, int shift)
      : mask_(static_cast<uint32_t>(top_code(bits)) * 0x00010001u << shift),
        scale_(static_cast<uint32_t>(15 - shift) << 10 | static_cast<uint32_t>(15 - shift) << 26),
        offset_(half_pair(-static_cast<float>((1024 >> shift) + middle_code(bits)))) {}

  // Codes less the middle code, two in a word: bytes 0 and 2, and bytes 1 and 3.
  TOKCORE_DEVICE uint32_t even(uint32_t word) const {
    return ptx::fma_f16x2((word & mask_) | 0x64006400u, scale_, offset_);
  }
  TOKCORE_DEVICE uint32_t odd(uint32_t word) const { return even(word >> 8); }

 private:
  uint32_t mask_, scale_, offset_;
};

// The quads of a page or row that a lane reads one after the other, `kStep` quads apart: word `word()` of those that
// hold a plane, in plane `shift()` / bits.
class QuadCursor {
 public:
  TOKCORE_DEVICE QuadCursor(int first, int words, int bits) : word_(first), words_(words), bits_(bits) { settle(); }
  TOKCORE_DEVICE void advance(int quads) {
    word_ += quads;
    settle();
  }
  TOKCORE_DEVICE int word() const { return word_; }
  TOKCORE_DEVICE int shift() const { return shift_; }

 private:
  TOKCORE_DEVICE void settle() {
    while (word_ >= words_) {
      word_ -= words_;
      shift_ += bits_;
    }
  }
  int word_, words_, bits_, shift_ = 0;
};

// Pages of codes lie in shared memory as in the cache, but for the order of 16-byte chunks: a warp reads eight
// neighbouring tokens of four neighbouring words, 64 bytes apart, and meets every bank once.
TOKCORE_DEVICE int swizzled_chunk(int chunk) { return chunk ^ (chunk >> 2 & 2); }

}  // namespace tokcore::cuda
