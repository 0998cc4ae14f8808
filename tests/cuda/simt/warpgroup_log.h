// Instructions that all four warps of a warpgroup must execute alike, though not at the same time.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "simt/thread.h"

namespace tokcore::simt {

// Entry: copyable, comparable, with std::string describe() const.
template <class Entry>
class WarpgroupLog {
 public:
  // Once per warp and instruction. fail()s if another warp executed something else at this position.
  void record(const Thread& thread, const Entry& entry) {
    if (groups_.empty()) groups_.resize(static_cast<size_t>(thread.block->num_threads + 127) / 128);
    Group& group = groups_[static_cast<size_t>(thread.warpgroup)];
    const size_t position = group.executed[thread.warp % 4]++ - group.begin;
    if (position == group.entries.size()) {
      group.entries.push_back(entry);
    } else if (!(group.entries[position] == entry)) {
      fail("warp " + std::to_string(thread.warp) + " executes " + entry.describe() +
           ", another warp of its warpgroup " + group.entries[position].describe());
    }
    while (!group.entries.empty() && all_beyond(group)) {
      group.entries.pop_front();
      ++group.begin;
    }
  }

  // After the block ended: every warp must have executed everything.
  void check_complete() const {
    for (size_t g = 0; g < groups_.size(); ++g) {
      if (groups_[g].entries.empty()) continue;
      fail("only some warps of warpgroup " + std::to_string(g) + " executed " + groups_[g].entries.front().describe());
    }
  }

 private:
  struct Group {
    std::deque<Entry> entries;  // those that some warp has yet to execute
    uint64_t begin = 0;         // number of the first of them
    uint64_t executed[4] = {};
  };
  static bool all_beyond(const Group& group) {
    for (uint64_t executed : group.executed) {
      if (executed <= group.begin) return false;
    }
    return true;
  }
  std::vector<Group> groups_;
};

}  // namespace tokcore::simt
