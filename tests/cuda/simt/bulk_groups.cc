#include "simt/bulk_groups.h"

#include <deque>
#include <string>
#include <utility>

#include "simt/inclination.h"
#include "simt/thread.h"
#include "simt/tma.h"

namespace tokcore::simt {
namespace {

struct Store {
  uint64_t group;
  SharedRange source;
  std::function<std::vector<unsigned char>()> read;              // empty once done
  std::function<void(const std::vector<unsigned char>&)> write;  // likewise
  std::vector<unsigned char> bytes;

  void do_read() {
    if (read != nullptr) bytes = std::exchange(read, nullptr)();
  }
  void do_write() {
    do_read();
    if (write != nullptr) std::exchange(write, nullptr)(bytes);
  }
};

// Of one thread, oldest first: those that it has not waited for, and then those that have not landed.
struct ThreadStores {
  uint64_t num_commits = 0;  // the group that is open
  std::deque<Store> unwaited, landing;

  void wait_for(uint64_t groups_below, bool reads_only) {
    while (!unwaited.empty() && unwaited.front().group < groups_below) {
      unwaited.front().do_read();
      landing.push_back(std::move(unwaited.front()));
      unwaited.pop_front();
    }
    while (!reads_only && !landing.empty() && landing.front().group < groups_below) land();
  }
  void land() {
    landing.front().do_write();
    landing.pop_front();
  }
};

class BulkStores : public BlockState {
 public:
  ThreadStores& of(const Thread& thread) {
    if (threads_.empty()) threads_.resize(static_cast<size_t>(thread.block->num_threads));
    return threads_[static_cast<size_t>(thread.linear)];
  }

  // Shared memory goes away with the block, so every store must have read it; that the writes land is up to the device.
  void on_thread_exit(Thread& thread) override {
    ThreadStores& mine = of(thread);
    if (!mine.unwaited.empty()) {
      fail(mine.unwaited.front().group == mine.num_commits
               ? "exits with a bulk store that no cp.async.bulk.commit_group followed"
               : "exits without cp.async.bulk.wait_group for a bulk store");
    }
    while (!mine.landing.empty()) mine.land();
  }

  const std::vector<ThreadStores>& threads() const { return threads_; }

 private:
  std::vector<ThreadStores> threads_;
};

ThreadStores& my_stores() { return this_block().state<BulkStores>().of(this_thread()); }

}  // namespace

void add_bulk_store(SharedRange source, std::function<std::vector<unsigned char>()> read,
                    std::function<void(const std::vector<unsigned char>&)> write) {
  ThreadStores& mine = my_stores();
  mine.unwaited.push_back({mine.num_commits, source, std::move(read), std::move(write), {}});
  // Those of a thread are done in order.
  if (!done_at_issue(AsyncWork::kBulkStore)) return;
  for (Store& store : mine.landing) store.do_read();
  for (Store& store : mine.unwaited) store.do_read();
  if (!done_at_issue(AsyncWork::kBulkStore)) return;
  for (Store& store : mine.landing) store.do_write();
  for (Store& store : mine.unwaited) store.do_write();
}

void bulk_commit_group() { ++my_stores().num_commits; }

void bulk_wait_group(int allowed, bool reads_only) {
  ThreadStores& mine = my_stores();
  const auto newest = static_cast<uint64_t>(allowed);
  mine.wait_for(mine.num_commits > newest ? mine.num_commits - newest : 0, reads_only);
}

void check_not_read_by_bulk_stores(Block& block, SharedRange range, const char* primitive) {
  const auto& threads = block.state<BulkStores>().threads();
  for (size_t thread = 0; thread < threads.size(); ++thread) {
    for (const Store& store : threads[thread].unwaited) {
      if (store.source.offset >= range.offset + range.bytes ||
          range.offset >= store.source.offset + store.source.bytes) {
        continue;
      }
      fail(std::string(primitive) + " to shared offset " + std::to_string(range.offset) + ": thread " +
           std::to_string(thread) + " has not waited for its bulk store from there");
    }
  }
}

}  // namespace tokcore::simt
