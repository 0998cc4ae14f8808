// Work that the hardware does on the side and reports to nobody in particular (TMA): done as late as allowed, as early
// as allowed, or at a random point in between, as the policy says.
#pragma once

#include <deque>
#include <functional>
#include <string>

#include "simt/policy.h"
#include "simt/thread.h"

namespace tokcore::simt {

// One per cluster. Work runs as the thread that issued it (this_thread, this_block, fail).
// kLate: the oldest piece runs when no thread can. kRandom: any piece, at any scheduling point. Work that is left when
// a block ends is an error: its shared memory is gone.
class AsyncQueue {
 public:
  void enqueue(std::function<void()> work, std::string what);

  bool force_one();  // runs the oldest piece; false if there is none

  bool empty() const { return pieces_.empty(); }

  void start(Asynchrony asynchrony, uint64_t seed);  // of a cluster
  void at_scheduling_point();                        // kRandom: perhaps runs a piece
  std::string describe() const;                      // what is pending, for messages

 private:
  struct Piece {
    std::function<void()> work;
    std::string what;
    Thread* issuer;
  };
  void run(size_t position);

  std::deque<Piece> pieces_;
  Asynchrony asynchrony_ = Asynchrony::kLate;
  Random random_;
};

AsyncQueue& async_queue();  // of this thread's cluster

// Draws from the policy's seed, for primitives that keep their own pending work: whether a piece is done right now.
// kEarly: true. kLate: false. kRandom: half of the time.
bool completes_now();

}  // namespace tokcore::simt
