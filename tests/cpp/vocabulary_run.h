// Picks the vocabulary of an instruction-set level.
#pragma once

#include "tokcore/cpu/isa.h"
#include "vocabulary.h"

namespace tokcore::testing {

struct Vocabulary {
  void (*apply)(Function, const float*, float*, int64_t);
  void (*round_trip)(int, const float*, float*, int64_t);
  void (*upper_bound)(const float*, float*, int64_t);
  void (*transpose_block)(const float*, float*);
  void (*multiply_fma)(const BlockProduct&);
  bool (*multiply_split)(const BlockProduct&);
  bool (*multiply_bfloat16)(const BlockProduct&);
  void (*multiply_int8)(const Int8Product&);
  void (*online_softmax)(const OnlineSoftmax&);
};

const Vocabulary& vocabulary(cpu::Isa isa);

}  // namespace tokcore::testing
