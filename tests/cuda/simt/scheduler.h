// Runs the threads of one cluster of blocks as fibers, in the order that the policy gives, until all have exited.
//
// kInOrder: the lowest warp that can run does so until it can no longer, its lanes in ascending order. kReversed: the
// highest, in descending order. So one warp is ahead of the others by as much as the kernel's synchronization allows.
// kRandom: a random warp leads for a random while, its lanes in random order.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "simt/async.h"
#include "simt/fiber.h"
#include "simt/launch_shape.h"
#include "simt/shared_memory.h"
#include "simt/thread.h"

namespace tokcore::simt {

class Scheduler {
 public:
  // Throws an Error if the kernel failed.
  void run_cluster(const LaunchShape& shape, uint32_t cluster);

  // For the primitives, called as a thread of this cluster.
  void suspend(const Wait& wait, bool polls);
  void begin_anew();  // all can run, after a barrier: whoever comes first in the order, not the one that came last
  AsyncQueue& queue() { return queue_; }
  Random& random() { return random_; }
  const SharedMemory& shared_memory() const { return shared_; }
  const char* kernel_name() const { return shape_->name; }

  // On its own stack: a fault in the work of the hardware is reported as one of a thread.
  void run_on_service_fiber(void (*work)(void*), void* context, Thread& as);

  // The stack of the running fiber is given up, `message` is the outcome of the launch. For the fault handler.
  [[noreturn]] void abandon(const std::string& message);
  unsigned char* running_stack_top() const { return running_stack_top_; }
  bool is_stack_guard(const void* address) const { return stacks_.is_guard(address); }

  static Scheduler* active();  // of this host thread, null outside of a launch

 private:
  static void fiber_entry();
  static void service_entry();

  void set_up(uint32_t cluster);
  void set_up_block(Block& block);
  void run_threads();
  Thread* choose();
  Thread* choose_in_turn();
  Thread* choose_randomly();
  Thread* choose_polling();
  Thread* choose_in(size_t warp);
  int choose_lane(unsigned ready);
  bool is_scheduling_point();
  void choose_first_leader();
  Thread& thread_at(size_t warp, int lane);
  void enter(Thread& thread);
  void leave(Thread& thread);
  void finish_blocks();
  void run_thread_body();
  void record(const std::string& message);

  const LaunchShape* shape_ = nullptr;
  Policy policy_;
  Random random_;
  AsyncQueue queue_;
  SharedMemory shared_;
  StackPool stacks_;
  std::vector<Block> blocks_;
  std::vector<Thread> threads_;  // of all blocks, one block after the other
  std::vector<Warp> warps_;      // likewise
  size_t warps_per_block_ = 0;
  size_t live_ = 0;
  size_t leading_warp_ = 0;  // the one that runs ahead of the others
  size_t polling_turn_ = 0;  // the thread that polled last
  uint64_t idle_polls_ = 0;  // turns of polling threads since another thread ran
  void* scheduler_stack_ = nullptr;
  unsigned char* running_stack_top_ = nullptr;
  struct Service {
    void (*work)(void*);
    void* context;
    void* caller_stack;
  } service_{};
  std::string error_;
  bool failed_ = false;
};

}  // namespace tokcore::simt
