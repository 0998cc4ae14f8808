// What this machine can do at most, measured: the denominators of "% of peak".
#pragma once

#include "tokcore/cpu/threads.h"

namespace tokcore {

enum class PeakKind { kFmaFp32, kAmxBf16, kAmxInt8, kRead };

// FLOP/s (multiply and add count two), OP/s or bytes/s over all threads for about `seconds`; 0 where the active
// instruction-set level lacks the unit.
double run_measure_peak_cpu(PeakKind kind, double seconds, const cpu::Threads& threads);

}  // namespace tokcore
