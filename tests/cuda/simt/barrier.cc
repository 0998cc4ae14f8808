#include "simt/barrier.h"

#include "simt/scheduler.h"

namespace tokcore::simt {
namespace {

class BlockBarrier : public BlockState {
 public:
  Votes arrive(const char* name, bool predicate, const std::source_location& where) {
    Block& block = this_block();
    if (arrived_ == 0) {
      name_ = name;
      where_ = where;
      true_votes_ = 0;
    } else if (name != name_ || where.line() != where_.line() || where.column() != where_.column()) {
      fail("divergent barrier: this thread reached " + describe_site(name, where) + " while " +
           std::to_string(arrived_) + " threads wait in " + describe_site(name_, where_));
    }
    if (block.live_threads != block.num_threads) {
      fail(describe_site(name, where) + " after " + std::to_string(block.num_threads - block.live_threads) +
           " threads of the block have exited");
    }
    true_votes_ += predicate ? 1 : 0;
    if (++arrived_ == block.num_threads) {
      const int count = true_votes_;
      result_ = {count, count == arrived_, count > 0};
      arrived_ = 0;
      for (int i = 0; i < (block.num_threads + 31) / 32; ++i) block.warps[i].ready = ~block.warps[i].exited;
      block.scheduler->begin_anew();
    } else {
      Wait wait;
      wait.name = name;
      wait.where = where;
      internal::suspend(wait);
    }
    // Not overwritten before all have read it: the next barrier completes after all have left this one.
    return result_;
  }

  void on_thread_exit(Thread&) override {
    if (arrived_ > 0) {
      fail("exited while " + std::to_string(arrived_) + " threads wait in " + describe_site(name_, where_));
    }
  }

 private:
  int arrived_ = 0;
  int true_votes_ = 0;
  const char* name_ = "";
  std::source_location where_;
  Votes result_{};
};

}  // namespace

Votes block_barrier(const char* name, bool predicate, const std::source_location& where) {
  return this_block().state<BlockBarrier>().arrive(name, predicate, where);
}

}  // namespace tokcore::simt
