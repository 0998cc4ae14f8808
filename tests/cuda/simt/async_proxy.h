// The async proxy's view of shared memory. TMA and wgmma see what threads wrote with ordinary stores only after
// fence.proxy.async; a kernel that forgets it is told so when the bytes are used.
#pragma once

#include <cstdint>
#include <vector>

#include "simt/thread.h"

namespace tokcore::simt {

// Ordinary stores cannot be observed one by one, so the view is a second copy of shared memory: fences bring it up to
// date, asynchronous writes go to both copies, and an asynchronous read of bytes in which they differ lacks a fence.
// A fence counts for every store made before it, by whichever thread.
class AsyncView : public BlockState {
 public:
  void fence(Block& block);

  // fail()s if [offset, offset + bytes) holds stores that no fence followed.
  void check(Block& block, uint32_t offset, uint32_t bytes, const char* primitive);

  // An asynchronous write, checked likewise.
  void write(Block& block, uint32_t offset, const void* from, uint32_t bytes, const char* primitive);

 private:
  static constexpr uint32_t kGranule = 128;

  // What fences need not copy: granules last written asynchronously. Most of shared memory, in most kernels.
  struct Granule {
    bool asynchronous = false;
    uint64_t num_fences = 0;  // as of the asynchronous write
  };
  struct Run {
    uint32_t begin, end;  // bytes
  };

  void prepare(Block& block);
  void find_runs(Block& block);

  std::vector<unsigned char> view_;
  std::vector<Granule> granules_;
  std::vector<Run> copied_by_fences_;
  bool runs_are_known_ = false;
  uint64_t num_fences_ = 0;
};

// fence.proxy.async: also makes mbarrier.init visible to TMA.
void fence_proxy_async();

}  // namespace tokcore::simt
