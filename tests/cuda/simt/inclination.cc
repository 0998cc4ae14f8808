#include "simt/inclination.h"

#include "simt/scheduler.h"

namespace tokcore::simt {

bool Inclinations::at_issue(AsyncWork kind) {
  Inclination& inclination = of_kind_[static_cast<size_t>(kind)];
  if (inclination == Inclination::kUnknown) {
    constexpr Inclination kChoices[] = {Inclination::kEarly, Inclination::kLate, Inclination::kNone};
    inclination = kChoices[this_block().scheduler->random().below(3)];
  }
  if (inclination == Inclination::kNone) return completes_now();
  return inclination == Inclination::kEarly;
}

}  // namespace tokcore::simt
