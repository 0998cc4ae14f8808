// Threads without torch: the caller hands in its pool, kernels hand out items of work.
#pragma once

#include <cstdint>

namespace tokcore::cpu {

struct Threads {
  int count;  // workers that `launch` starts
  // Runs body(context, worker) once for every worker in [0, count) and returns when all are done.
  void (*launch)(int count, void (*body)(void* context, int worker), void* context);
};

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

}  // namespace tokcore::cpu
