// The CPU vocabulary behind plain functions, one set per instruction-set level, for the test module.
#pragma once

#include <cstdint>

namespace tokcore::testing {

enum class Function { kExp, kTanh };

struct BlockProduct {
  const float* a;  // [32, size]
  const float* b;  // [32, size], rows of the panel's columns
  int64_t size;
  const int32_t* steps;  // or null: all
  int64_t num_steps;
  bool backwards;
  bool through_columns;  // pack b by columns of its transpose in place of by transposed rows
  float* out;            // [32, 32] added to
};

struct Int8Product {
  const int8_t* a;  // [32, size]
  const int8_t* b;  // [32, size]
  int64_t size;
  int32_t* out;  // [32, 32] added to
};

// Online softmax of rows of logits [num_logits][16 lanes]: lse and entropy, the logits split into two merged halves.
struct OnlineSoftmax {
  const float* logits;
  int64_t num_logits;
  float* lse;      // [16]
  float* entropy;  // [16]
};

}  // namespace tokcore::testing

#define TOKCORE_TESTING_FUNCTIONS                                                                         \
  void apply(::tokcore::testing::Function function, const float* in, float* out, int64_t count);          \
  void round_trip(int dtype, const float* in, float* out, int64_t count);                                 \
  void upper_bound(const float* in, float* out, int64_t count);                                           \
  void transpose_block(const float* in, float* out);                                                      \
  void multiply_fma(const ::tokcore::testing::BlockProduct& product);                                     \
  bool multiply_split(const ::tokcore::testing::BlockProduct& product);    /* false: no such unit here */ \
  bool multiply_bfloat16(const ::tokcore::testing::BlockProduct& product); /* false: no such unit here */ \
  void multiply_int8(const ::tokcore::testing::Int8Product& product);                                     \
  void online_softmax(const ::tokcore::testing::OnlineSoftmax& softmax)
