#include "tokcore/cpu/isa.h"
#include "tokcore/cpu/measure_peak.h"

namespace tokcore {
namespace cpu {
TOKCORE_DECLARE_PER_ISA(double measure_peak(PeakKind, double, const Threads&))
}  // namespace cpu

double run_measure_peak_cpu(PeakKind kind, double seconds, const cpu::Threads& threads) {
  TOKCORE_CALL_ACTIVE_ISA(measure_peak, kind, seconds, threads);
}

}  // namespace tokcore
