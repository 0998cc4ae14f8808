// Rendezvous of the lanes of a warp.
#include "simt/scheduler.h"

namespace tokcore::simt {
namespace {

bool same_place(const std::source_location& a, const std::source_location& b) {
  return a.line() == b.line() && a.column() == b.column();
}

std::string lanes_of(unsigned mask) {
  std::string text;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    int last = lane;
    while (last < 31 && (mask >> (last + 1) & 1) != 0) ++last;
    text += (text.empty() ? "" : ",") + std::to_string(lane);
    if (last > lane) text += "-" + std::to_string(last);
    lane = last;
  }
  return text;
}

}  // namespace

namespace internal {

Rendezvous* join(const void* key, const char* name, unsigned mask, void* mine, const std::source_location& where) {
  Thread& thread = this_thread();
  Warp& warp = *thread.warp_state;
  const unsigned bit = 1u << thread.lane;
  if ((mask & bit) == 0)
    fail(describe_site(name, where) + ": this lane is not in its own mask, lanes " + lanes_of(mask));

  Rendezvous* mine_open = nullptr;
  for (int i = 0; i < warp.num_open; ++i) {
    Rendezvous& open = warp.open[i];
    if (open.mask == mask && open.key == key && same_place(open.where, where)) {
      mine_open = &open;
    } else if ((open.mask & mask) != 0) {
      fail("divergent warp: this lane reached " + describe_site(name, where) + " for lanes " + lanes_of(mask) +
           " while lanes " + lanes_of(open.arrived) + " wait in " + describe_site(open.name, open.where) +
           " for lanes " + lanes_of(open.mask));
    }
  }
  if (mine_open == nullptr) {
    if ((mask & warp.exited) != 0) {
      fail(describe_site(name, where) + ": lanes " + lanes_of(mask & warp.exited) +
           " of its mask have exited or do not exist");
    }
    mine_open = &warp.open[warp.num_open++];
    mine_open->key = key;
    mine_open->name = name;
    mine_open->where = where;
    mine_open->mask = mask;
    mine_open->arrived = 0;
    for (void*& lane : mine_open->lanes) lane = nullptr;
  }
  mine_open->lanes[thread.lane] = mine;
  mine_open->arrived |= bit;
  if (mine_open->arrived == mask) return mine_open;

  Wait wait;
  wait.name = name;
  wait.where = where;
  suspend(wait);
  return nullptr;
}

void release(Rendezvous* rendezvous) {
  const Thread& thread = this_thread();
  Warp& warp = *thread.warp_state;
  warp.ready |= rendezvous->mask & ~(1u << thread.lane);
  --warp.num_open;
  if (rendezvous != &warp.open[warp.num_open]) *rendezvous = warp.open[warp.num_open];
}

}  // namespace internal
}  // namespace tokcore::simt
