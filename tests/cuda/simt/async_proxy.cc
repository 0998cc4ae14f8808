#include "simt/async_proxy.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "simt/mbarrier.h"

namespace tokcore::simt {

// The first fence or asynchronous access may come after stores: the view starts as shared memory did, poisoned.
void AsyncView::prepare(Block& block) {
  if (!view_.empty() || block.shared_bytes == 0) return;
  view_.assign(block.shared_bytes, 0xff);
  granules_.assign((block.shared_bytes + kGranule - 1) / kGranule, Granule{});
}

void AsyncView::find_runs(Block& block) {
  if (runs_are_known_) return;
  copied_by_fences_.clear();
  for (uint32_t i = 0; i < granules_.size(); ++i) {
    if (granules_[i].asynchronous) continue;
    const uint32_t begin = i * kGranule;
    const uint32_t end = std::min<uint32_t>(begin + kGranule, block.shared_bytes);
    if (!copied_by_fences_.empty() && copied_by_fences_.back().end == begin) {
      copied_by_fences_.back().end = end;
    } else {
      copied_by_fences_.push_back({begin, end});
    }
  }
  runs_are_known_ = true;
}

void AsyncView::fence(Block& block) {
  prepare(block);
  find_runs(block);
  for (const Run& run : copied_by_fences_) {
    std::memcpy(view_.data() + run.begin, block.shared + run.begin, run.end - run.begin);
  }
  ++num_fences_;
}

void AsyncView::check(Block& block, uint32_t offset, uint32_t bytes, const char* primitive) {
  prepare(block);
  if (std::memcmp(view_.data() + offset, block.shared + offset, bytes) == 0) return;
  for (uint32_t i = offset / kGranule; i <= (offset + bytes - 1) / kGranule; ++i) {
    const uint32_t begin = i * kGranule;
    const uint32_t length = std::min<uint32_t>(kGranule, block.shared_bytes - begin);
    const uint32_t from = std::max(begin, offset);
    const uint32_t to = std::min(begin + length, offset + bytes);
    if (std::memcmp(view_.data() + from, block.shared + from, to - from) == 0) continue;
    Granule& granule = granules_[i];
    if (!granule.asynchronous || granule.num_fences == num_fences_) {
      fail(std::string(primitive) + ": uses shared memory at offset " + std::to_string(from) +
           ", where ordinary stores were not followed by fence.proxy.async");
    }
    // Threads took over memory that TMA had filled, and fenced since: from now on fences copy this granule.
    granule.asynchronous = false;
    runs_are_known_ = false;
    std::memcpy(view_.data() + begin, block.shared + begin, length);
  }
}

void AsyncView::write(Block& block, uint32_t offset, const void* from, uint32_t bytes, const char* primitive) {
  check(block, offset, bytes, primitive);
  std::memcpy(view_.data() + offset, from, bytes);
  std::memcpy(block.shared + offset, from, bytes);
  // Only granules that are covered whole: the rest of the others may be the threads'. Those keep being copied.
  for (uint32_t i = (offset + kGranule - 1) / kGranule; (i + 1) * kGranule <= offset + bytes; ++i) {
    runs_are_known_ = runs_are_known_ && granules_[i].asynchronous;
    granules_[i] = {true, num_fences_};
  }
}

void fence_proxy_async() {
  Block& block = this_block();
  block.state<AsyncView>().fence(block);
  publish_mbarriers();
}

}  // namespace tokcore::simt
