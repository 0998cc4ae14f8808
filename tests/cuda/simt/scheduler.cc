#include "simt/scheduler.h"

#include <bit>

#include "simt/thread_report.h"

namespace tokcore::simt {
namespace {

// Turns of nothing but polling, per thread, before pending work is forced, and before it counts as a deadlock.
constexpr uint64_t kPatience = 4;
constexpr uint64_t kPollsOfADeadlock = 4096;

// kRandom: a warp leads for some hundred turns, long enough to pass several collectives before the others.
constexpr uint32_t kTurnsOfALeader = 256;

thread_local Scheduler* active_scheduler = nullptr;

}  // namespace

Scheduler* Scheduler::active() { return active_scheduler; }

void Scheduler::run_cluster(const LaunchShape& shape, uint32_t cluster) {
  shape_ = &shape;
  policy_ = policy();
  set_up(cluster);
  active_scheduler = this;
  run_threads();
  if (!failed_) finish_blocks();
  active_scheduler = nullptr;
  internal::current = nullptr;
  queue_.start(policy_.async, 0);  // what a failed kernel left
  for (Block& block : blocks_) block.states.clear();
  if (failed_) throw Error(error_);
}

void Scheduler::set_up(uint32_t cluster) {
  const LaunchShape& shape = *shape_;
  const size_t per_block = size_t{shape.block.x} * shape.block.y * shape.block.z;
  warps_per_block_ = (per_block + 31) / 32;
  const uint32_t clusters_x = shape.grid.x / shape.cluster;
  random_ = Random(policy_.seed * 0x100000001b3 + cluster);
  queue_.start(policy_.async, random_.bits());
  shared_.start(static_cast<int>(shape.cluster), shape.shared_bytes);
  stacks_.reserve(per_block * shape.cluster + 1);  // the last one for the work of the hardware
  blocks_.resize(shape.cluster);
  threads_.resize(per_block * shape.cluster);
  warps_.resize(warps_per_block_ * shape.cluster);
  live_ = threads_.size();
  choose_first_leader();
  polling_turn_ = 0;
  idle_polls_ = 0;
  failed_ = false;

  for (unsigned rank = 0; rank < shape.cluster; ++rank) {
    Block& block = blocks_[rank];
    block.index = {cluster % clusters_x * shape.cluster + rank, cluster / clusters_x % shape.grid.y,
                   cluster / clusters_x / shape.grid.y};
    block.dim = shape.block;
    block.grid = shape.grid;
    block.num_threads = static_cast<int>(per_block);
    block.rank = static_cast<int>(rank);
    block.cluster_size = static_cast<int>(shape.cluster);
    block.shared = shared_.base(block.rank);
    block.shared_bytes = shape.shared_bytes;
    block.threads = threads_.data() + rank * per_block;
    block.warps = warps_.data() + rank * warps_per_block_;
    block.blocks = blocks_.data();
    block.scheduler = this;
    block.live_threads = block.num_threads;
    set_up_block(block);
  }
}

// Every thread at the beginning of the kernel.
void Scheduler::set_up_block(Block& block) {
  const dim3 dim = block.dim;
  const auto num_threads = static_cast<unsigned>(block.num_threads);
  for (size_t i = 0; i < warps_per_block_; ++i) {
    const size_t lanes = std::min<size_t>(32, num_threads - i * 32);
    const unsigned existing = lanes == 32 ? kFullMask : (1u << lanes) - 1;
    Warp& warp = block.warps[i];
    warp.ready = existing;
    warp.exited = ~existing;
    warp.conditional = warp.polling = 0;
    warp.num_open = 0;
  }
  for (unsigned i = 0; i < num_threads; ++i) {
    Thread& thread = block.threads[i];
    thread.index = {i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y};
    thread.linear = static_cast<int>(i);
    thread.lane = static_cast<int>(i % 32);
    thread.warp = static_cast<int>(i / 32);
    thread.warpgroup = static_cast<int>(i / 128);
    thread.block = &block;
    thread.warp_state = &block.warps[i / 32];
    thread.wait = nullptr;
    thread.stack_top = stacks_.top(static_cast<size_t>(block.rank) * num_threads + i);
    thread.stack_pointer = prepare_stack(thread.stack_top, &Scheduler::fiber_entry);
  }
}

void Scheduler::run_threads() {
  while (live_ > 0 && !failed_) {
    queue_.at_scheduling_point();
    if (failed_) break;
    if (idle_polls_ > kPatience * threads_.size() && queue_.force_one()) idle_polls_ = 0;
    Thread* thread = idle_polls_ > kPollsOfADeadlock * threads_.size() ? nullptr : choose();
    if (thread != nullptr) {
      enter(*thread);
      tokcore_simt_switch(&scheduler_stack_, thread->stack_pointer);
      running_stack_top_ = nullptr;
    } else if (queue_.force_one()) {
      idle_polls_ = 0;
    } else if (!failed_) {
      record(report_deadlock(blocks_, kernel_name()));
    }
  }
}

Thread* Scheduler::choose() {
  Thread* thread = policy_.order == Order::kRandom ? choose_randomly() : choose_in_turn();
  return thread != nullptr ? thread : choose_polling();
}

Thread* Scheduler::choose_in_turn() {
  if (Thread* thread = choose_in(leading_warp_)) return thread;
  for (size_t tried = 0; tried < warps_.size(); ++tried) {
    leading_warp_ = policy_.order == Order::kReversed ? warps_.size() - 1 - tried : tried;
    if (Thread* thread = choose_in(leading_warp_)) return thread;
  }
  return nullptr;
}

Thread* Scheduler::choose_randomly() {
  const auto num_warps = static_cast<uint32_t>(warps_.size());
  if (Thread* thread = choose_in(leading_warp_)) return thread;
  leading_warp_ = random_.below(num_warps);
  for (uint32_t tried = 0; tried < num_warps; ++tried) {
    if (Thread* thread = choose_in(leading_warp_)) return thread;
    leading_warp_ = (leading_warp_ + 1) % num_warps;
  }
  return nullptr;
}

// All of them in turn, whatever the order: one that polls for what another polling thread does must not keep it
// waiting.
Thread* Scheduler::choose_polling() {
  for (size_t tried = 0; tried < threads_.size(); ++tried) {
    polling_turn_ = (polling_turn_ + 1) % threads_.size();
    Thread& thread = threads_[polling_turn_];
    if ((thread.warp_state->polling >> thread.lane & 1) != 0) return &thread;
  }
  return nullptr;
}

Thread* Scheduler::choose_in(size_t warp_index) {
  Warp& warp = warps_[warp_index];
  for (unsigned rest = warp.conditional; warp.ready == 0 && rest != 0; rest &= rest - 1) {
    Thread& thread = thread_at(warp_index, std::countr_zero(rest));
    internal::current = &thread;
    if (thread.wait->ready(thread.wait->context)) warp.ready |= 1u << thread.lane;
  }
  if (warp.ready == 0) return nullptr;
  return &thread_at(warp_index, choose_lane(warp.ready));
}

Thread& Scheduler::thread_at(size_t warp, int lane) {
  return blocks_[warp / warps_per_block_].threads[warp % warps_per_block_ * 32 + static_cast<size_t>(lane)];
}

// The thread is the one that runs from now on.
inline void Scheduler::enter(Thread& thread) {
  Warp& warp = *thread.warp_state;
  const unsigned lane = 1u << thread.lane;
  idle_polls_ = (warp.polling & lane) != 0 ? idle_polls_ + 1 : 0;
  warp.ready &= ~lane;
  warp.conditional &= ~lane;
  warp.polling &= ~lane;
  internal::current = &thread;
  running_stack_top_ = thread.stack_top;
}

int Scheduler::choose_lane(unsigned ready) {
  switch (policy_.order) {
    case Order::kInOrder:
      return std::countr_zero(ready);
    case Order::kReversed:
      return 31 - std::countl_zero(ready);
    case Order::kRandom:
      break;
  }
  const auto first = static_cast<int>(random_.below(32));
  return (std::countr_zero(std::rotr(ready, first)) + first) % 32;
}

// Whether there is anything to decide between one lane and the next of the same warp.
bool Scheduler::is_scheduling_point() {
  if (policy_.order == Order::kRandom && random_.below(kTurnsOfALeader) == 0) {
    leading_warp_ = random_.below(static_cast<uint32_t>(warps_.size()));
    return true;
  }
  return policy_.async == Asynchrony::kRandom && !queue_.empty();
}

// To the next lane of the same warp without a detour where the scheduler would choose it anyway.
inline void Scheduler::leave(Thread& thread) {
  const unsigned ready = thread.warp_state->ready;
  if (is_scheduling_point() || ready == 0 || failed_) {
    tokcore_simt_switch(&thread.stack_pointer, scheduler_stack_);
    return;
  }
  Thread& next = *(&thread + (choose_lane(ready) - thread.lane));
  enter(next);
  tokcore_simt_switch(&thread.stack_pointer, next.stack_pointer);
}

void Scheduler::suspend(const Wait& wait, bool polls) {
  Thread& thread = this_thread();
  if (running_stack_top_ != thread.stack_top) fail("asynchronous work must not wait");
  thread.wait = &wait;
  Warp& warp = *thread.warp_state;
  const unsigned lane = 1u << thread.lane;
  warp.ready &= ~lane;
  if (polls) warp.polling |= lane;
  if (wait.ready != nullptr) warp.conditional |= lane;
  leave(thread);
}

void Scheduler::begin_anew() {
  Thread& thread = this_thread();
  thread.warp_state->ready |= 1u << thread.lane;
  choose_first_leader();
  tokcore_simt_switch(&thread.stack_pointer, scheduler_stack_);
}

void Scheduler::choose_first_leader() {
  const auto num_warps = static_cast<uint32_t>(warps_.size());
  switch (policy_.order) {
    case Order::kInOrder:
      leading_warp_ = 0;
      break;
    case Order::kReversed:
      leading_warp_ = num_warps - 1;
      break;
    case Order::kRandom:
      leading_warp_ = random_.below(num_warps);
      break;
  }
}

void Scheduler::fiber_entry() {
  active()->run_thread_body();
  active()->leave(this_thread());
  __builtin_unreachable();  // a thread that has exited is never chosen
}

void Scheduler::run_thread_body() {
  Thread& thread = this_thread();
  Block& block = *thread.block;
  Warp& warp = *thread.warp_state;
  try {
    shape_->body(shape_->context);
    warp.exited |= 1u << thread.lane;
    for (int i = 0; i < warp.num_open; ++i) {
      const Rendezvous& open = warp.open[i];
      if ((open.mask >> thread.lane & 1) != 0) {
        fail("exited while other lanes of its warp wait for it in " + describe_site(open.name, open.where));
      }
    }
    for (size_t i = 0; i < block.states.size(); ++i) block.states[i].value->on_thread_exit(thread);
  } catch (const Error& error) {
    record(error.what());
  } catch (const std::exception& error) {
    record(describe_thread(thread) + ": exception: " + error.what());
  } catch (...) {
    record(describe_thread(thread) + ": exception of unknown type");
  }
  warp.exited |= 1u << thread.lane;
  warp.ready &= ~warp.exited;
  --block.live_threads;
  --live_;
}

void Scheduler::run_on_service_fiber(void (*work)(void*), void* context, Thread& as) {
  Thread* const interrupted = internal::current;
  unsigned char* const interrupted_stack = running_stack_top_;
  const Service outer = service_;
  if (interrupted_stack == stacks_.top(threads_.size())) {  // work that forces other work
    work(context);
    return;
  }
  service_.work = work;
  service_.context = context;
  internal::current = &as;
  running_stack_top_ = stacks_.top(threads_.size());
  tokcore_simt_switch(&service_.caller_stack, prepare_stack(running_stack_top_, &Scheduler::service_entry));
  service_ = outer;
  running_stack_top_ = interrupted_stack;
  internal::current = interrupted;
  if (failed_ && interrupted_stack != nullptr) throw Error(error_);
}

void Scheduler::service_entry() {
  Scheduler& self = *active();
  try {
    self.service_.work(self.service_.context);
  } catch (const std::exception& error) {
    self.record(error.what());
  }
  void* given_up;
  tokcore_simt_switch(&given_up, self.service_.caller_stack);
  __builtin_unreachable();
}

void Scheduler::finish_blocks() {
  if (!queue_.empty()) {
    record(std::string("kernel ") + kernel_name() +
           ": the block ended with asynchronous work pending: " + queue_.describe());
  }
  for (Block& block : blocks_) {
    internal::current = block.threads;
    try {
      for (size_t i = 0; i < block.states.size(); ++i) block.states[i].value->on_block_end();
      if (shared_.damaged(block.rank)) fail("a write beside the block's shared memory");
    } catch (const Error& error) {
      record(error.what());
    }
  }
}

void Scheduler::record(const std::string& message) {
  if (failed_) return;  // what follows from an error says nothing new
  failed_ = true;
  error_ = message;
}

void Scheduler::abandon(const std::string& message) {
  record(message);
  const bool in_service = running_stack_top_ == stacks_.top(threads_.size());
  void* given_up;
  tokcore_simt_switch(&given_up, in_service ? service_.caller_stack : scheduler_stack_);
  __builtin_unreachable();
}

}  // namespace tokcore::simt
