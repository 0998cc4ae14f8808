#include "simt/cp_async.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "simt/async.h"
#include "simt/memory.h"

namespace tokcore::simt {
namespace {

struct Copy {
  void* shared;
  const void* global;
  uint32_t bytes;
  uint32_t valid;
};

void perform(const Copy& copy) {
  std::memcpy(copy.shared, copy.global, copy.valid);
  std::memset(static_cast<unsigned char*>(copy.shared) + copy.valid, 0, copy.bytes - copy.valid);
}

// The copies of one thread, oldest first, and how many of them each group that is not waited for yet holds. A group
// keeps its place when its copies are already performed: waits count groups.
class OpenCopies {
 public:
  void issue(const Copy& copy) {
    if (completes_now()) {
      perform(copy);
      ++performed_uncommitted_;
    } else {
      copies_.push_back(copy);
      ++uncommitted_;
    }
  }
  void commit() {
    groups_.push_back({uncommitted_, uncommitted_ + performed_uncommitted_});
    uncommitted_ = performed_uncommitted_ = 0;
  }
  void wait(size_t pending) {
    size_t finished = 0;
    size_t done_groups = 0;
    for (; groups_.size() - done_groups > pending; ++done_groups) finished += groups_[done_groups].open;
    groups_.erase(groups_.begin(), groups_.begin() + static_cast<ptrdiff_t>(done_groups));
    for (size_t i = 0; i < finished; ++i) perform(copies_[i]);
    copies_.erase(copies_.begin(), copies_.begin() + static_cast<ptrdiff_t>(finished));
  }
  size_t uncommitted() const { return uncommitted_ + performed_uncommitted_; }
  size_t unwaited() const {
    size_t count = 0;
    for (const Group& group : groups_) count += group.issued;
    return count;
  }

 private:
  struct Group {
    size_t open;    // not performed yet
    size_t issued;  // in all
  };
  std::vector<Copy> copies_;
  std::vector<Group> groups_;
  size_t uncommitted_ = 0;
  size_t performed_uncommitted_ = 0;
};

class CopiesOfBlock : public BlockState {
 public:
  OpenCopies& of(const Thread& thread) {
    if (threads_.empty()) threads_.resize(static_cast<size_t>(thread.block->num_threads));
    return threads_[static_cast<size_t>(thread.linear)];
  }
  void on_thread_exit(Thread& thread) override {
    const OpenCopies& open = of(thread);
    if (open.uncommitted() > 0) {
      fail("exited with " + std::to_string(open.uncommitted()) + " uncommitted cp.async");
    }
    if (open.unwaited() > 0)
      fail("exited with " + std::to_string(open.unwaited()) + " cp.async that it did not wait for");
  }

 private:
  std::vector<OpenCopies> threads_;
};

OpenCopies& open_copies() { return this_block().state<CopiesOfBlock>().of(this_thread()); }

}  // namespace

void cp_async(void* shared, const void* global, size_t bytes, size_t valid) {
  if (valid > bytes) fail("cp.async: " + std::to_string(valid) + " valid bytes of " + std::to_string(bytes));
  check_shared(shared, bytes, bytes, "cp.async");
  if (valid > 0) {
    check_global(global, bytes, "cp.async");
    // An invalid source shows where the copy is issued, not where it is waited for.
    const auto* source = static_cast<const volatile unsigned char*>(global);
    static_cast<void>(source[0]);
    static_cast<void>(source[valid - 1]);
  }
  open_copies().issue({shared, global, static_cast<uint32_t>(bytes), static_cast<uint32_t>(valid)});
}

void cp_async_commit_group() { open_copies().commit(); }

void cp_async_wait_group(int pending) { open_copies().wait(static_cast<size_t>(pending)); }

void cp_async_wait_all() {
  open_copies().commit();
  open_copies().wait(0);
}

}  // namespace tokcore::simt
