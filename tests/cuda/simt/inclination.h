// When asynchronous work is done under the random policy: a block inclines, for each kind of work, to do it early,
// late, or sometimes so, sometimes so. A race between two kinds needs the one early and the other late to show.
#pragma once

#include <array>

#include "simt/async.h"
#include "simt/thread.h"

namespace tokcore::simt {

enum class AsyncWork { kTmaLoad, kBulkStore, kWgmma };

class Inclinations : public BlockState {
 public:
  // Whether this piece is done at issue.
  bool at_issue(AsyncWork kind);

 private:
  enum class Inclination { kUnknown, kEarly, kLate, kNone };
  std::array<Inclination, 3> of_kind_{};
};

inline bool done_at_issue(AsyncWork kind) {
  return policy().async == Asynchrony::kRandom ? this_block().state<Inclinations>().at_issue(kind) : completes_now();
}

}  // namespace tokcore::simt
