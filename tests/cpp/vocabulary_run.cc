#include "vocabulary_run.h"

namespace tokcore::cpu {
// The functions of every level, by its number.
#define TOKCORE_LEVEL(level)          \
  {level::testing::apply,             \
   level::testing::round_trip,        \
   level::testing::upper_bound,       \
   level::testing::transpose_block,   \
   level::testing::multiply_fma,      \
   level::testing::multiply_split,    \
   level::testing::multiply_bfloat16, \
   level::testing::multiply_int8,     \
   level::testing::online_softmax}

namespace baseline::testing {
TOKCORE_TESTING_FUNCTIONS;
}
namespace avx2::testing {
TOKCORE_TESTING_FUNCTIONS;
}
namespace avx512::testing {
TOKCORE_TESTING_FUNCTIONS;
}
namespace amx::testing {
TOKCORE_TESTING_FUNCTIONS;
}
}  // namespace tokcore::cpu

namespace tokcore::testing {

const Vocabulary& vocabulary(cpu::Isa isa) {
  using namespace cpu;
  static const Vocabulary levels[] = {TOKCORE_LEVEL(baseline), TOKCORE_LEVEL(avx2), TOKCORE_LEVEL(avx512),
                                      TOKCORE_LEVEL(amx)};
  return levels[static_cast<int>(isa)];
}

}  // namespace tokcore::testing
