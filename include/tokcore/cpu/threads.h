// Threads without torch: the caller hands in its pool, kernels hand out items of work.
#pragma once

#include <sched.h>

#include <cstdint>

namespace tokcore::cpu {

struct Threads {
  int count;  // workers that `launch` starts
  // Runs body(context, worker) once for every worker in [0, count) and returns when all are done.
  void (*launch)(int count, void (*body)(void* context, int worker), void* context);
};

// The calling thread alone, for work that takes less time than waking another one. The function has a name because
// nvcc, which reads this header too, loses the types of a lambda's parameters here.
inline void launch_in_turn(int count, void (*body)(void* context, int worker), void* context) {
  for (int worker = 0; worker < count; ++worker) body(context, worker);
}
inline Threads this_thread() { return {1, &launch_in_turn}; }

// Calls work(item, worker) for every item in [0, num_items). Which worker takes an item is left to chance, so an item
// must write only what belongs to it: then results do not depend on the number of threads.
// around_worker(worker, run) lets a caller set up per-thread state round the items of a worker.
template <class Work, class AroundWorker>
void for_each_item(const Threads& threads, int64_t num_items, Work&& work, AroundWorker&& around_worker) {
  struct Context {
    Work& work;
    AroundWorker& around_worker;
    int64_t num_items;
    int64_t next;
  } context{work, around_worker, num_items, 0};
  auto body = [](void* opaque, int worker) {
    Context& shared = *static_cast<Context*>(opaque);
    shared.around_worker(worker, [&] {
      for (;;) {
        const int64_t item = __atomic_fetch_add(&shared.next, 1, __ATOMIC_RELAXED);
        if (item >= shared.num_items) return;
        shared.work(item, worker);
      }
    });
  };
  const int workers = num_items < threads.count ? static_cast<int>(num_items) : threads.count;
  if (workers > 0) threads.launch(workers, body, &context);
}

template <class Work>
void for_each_item(const Threads& threads, int64_t num_items, Work&& work) {
  for_each_item(threads, num_items, work, [](int, auto&& run) { run(); });
}

// Lets workers that hold items 0, 1, 2, … add to a shared sum in the order of the items: each waits for its turn. The
// holder of the lowest item never waits, so there is no deadlock as long as items are taken in ascending order, which
// for_each_item does.
class Turns {
 public:
  static constexpr int64_t kElements = 8;  // of int64_t for one sum: a cache line of its own

  explicit Turns(int64_t* storage = nullptr) : storage_(storage) {}
  void reset(int64_t num_sums) const {
    for (int64_t i = 0; i < num_sums; ++i) storage_[i * kElements] = 0;
  }
  bool has_come(int64_t sum, int64_t item) const {
    return __atomic_load_n(storage_ + sum * kElements, __ATOMIC_ACQUIRE) == item;
  }
  void wait(int64_t sum, int64_t item) const {
    constexpr int kSpins = 4096;  // a fraction of a millisecond: a worker that has lost its core takes longer
    for (int spins = 0; !has_come(sum, item); ++spins) {
      if (spins < kSpins) {
        __builtin_ia32_pause();
      } else {
        sched_yield();
      }
    }
  }
  void pass_on(int64_t sum, int64_t item) const {
    __atomic_store_n(storage_ + sum * kElements, item + 1, __ATOMIC_RELEASE);
  }

 private:
  int64_t* storage_;
};

}  // namespace tokcore::cpu
