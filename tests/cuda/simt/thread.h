// A CUDA thread as a fiber: who runs now, how it waits, how it fails.
#pragma once

#include <source_location>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "simt/block.h"

namespace tokcore::simt {

// What is wrong with a kernel, or with the way it was launched. Names kernel, block, thread and primitive.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Why a thread does not run. Plain data: a thread that is given up after an error is never unwound.
struct Wait {
  const char* name = "";                           // the primitive
  std::source_location where;                      // line 0: unknown
  bool (*ready)(const void*) = nullptr;            // null: woken by whoever completes the primitive
  std::string (*describe)(const void*) = nullptr;  // more than the name, for the report of a deadlock
  const void* context = nullptr;
};

struct Thread {
  uint3 index;    // threadIdx
  int linear;     // within the block
  int lane;       // within the warp
  int warp;       // within the block
  int warpgroup;  // within the block
  Block* block;
  Warp* warp_state;
  const Wait* wait;  // on this thread's stack while it waits
  void* stack_pointer;
  unsigned char* stack_top;
};

namespace internal {
// One word of thread-local storage: a switch of fibers writes it and nothing else.
extern thread_local constinit Thread* current;

void suspend(const Wait& wait);  // returns when the scheduler chose this thread again
}  // namespace internal

inline Thread& this_thread() { return *internal::current; }
inline Block& this_block() { return *internal::current->block; }
inline bool in_kernel() { return internal::current != nullptr; }

// Throws an Error that begins with kernel, block and thread. Outside of a kernel: the message alone.
[[noreturn]] void fail(const std::string& message);

// A primitive without emulation. The name is the CUDA or CuTe one.
[[noreturn]] void unsupported(const char* name);

// "name (file:line)", or the name alone where the place is not known.
std::string describe_site(const char* name, const std::source_location& where);

// Blocks this thread until ready(). `what` is a string, or a callable that returns one, for the report of a deadlock.
// `ready` runs as this thread, possibly many times, without side effects.
template <class Ready, class What>
void wait_until(const Ready& ready, const What& what) {
  if (ready()) return;
  struct Context {
    const Ready* ready;
    const What* what;
  } const context{&ready, &what};
  Wait wait;
  wait.ready = [](const void* c) -> bool { return (*static_cast<const Context*>(c)->ready)(); };
  wait.describe = [](const void* c) -> std::string {
    const What& what = *static_cast<const Context*>(c)->what;
    if constexpr (std::is_invocable_v<const What&>) {
      return what();
    } else {
      return what;
    }
  };
  wait.context = &context;
  internal::suspend(wait);
}

// One turn of a loop that polls (test_wait, __nanosleep): lets the others run. When all that can run polls, pending
// asynchronous work is forced, and without any it is a deadlock after some thousand turns.
void poll(const char* name, const std::source_location& where = {});

// ---- the warp ------------------------------------------------------------------------------------------------------

// One collective under way. Two of them with disjoint masks may be open in one warp.
struct Rendezvous {
  const void* key;
  const char* name;
  std::source_location where;
  unsigned mask;
  unsigned arrived;
  void* lanes[32];  // what each lane of the mask brought; null for the other lanes
};

// Masks of lanes. A lane in none of them runs, or waits to be woken by another thread.
struct Warp {
  unsigned ready;        // to run
  unsigned conditional;  // wait, with a condition to be looked at (Wait::ready)
  unsigned polling;      // gave up their turn in a loop that polls
  unsigned exited;       // or never existed
  int num_open;
  Rendezvous open[32];
};

namespace internal {
// The rendezvous if this lane came last (the caller completes and releases it), otherwise null, after the release.
Rendezvous* join(const void* key, const char* name, unsigned mask, void* mine, const std::source_location& where);
void release(Rendezvous* rendezvous);
}  // namespace internal

// Rendezvous of the lanes in `mask`: all bring `mine`, the last one calls complete(void* const* lanes) for all, indexed
// by lane. Errors: lanes of the mask that are at another collective, at another mask, at another place (`where`), or
// gone; a lane that is not in its own mask. `key` identifies the primitive.
template <class Complete>
void warp_collective(const void* key, const char* name, unsigned mask, void* mine, const Complete& complete,
                     const std::source_location& where = {}) {
  if (Rendezvous* rendezvous = internal::join(key, name, mask, mine, where)) {
    complete(static_cast<void* const*>(rendezvous->lanes));
    internal::release(rendezvous);
  }
}

inline constexpr unsigned kFullMask = 0xffffffff;

}  // namespace tokcore::simt
