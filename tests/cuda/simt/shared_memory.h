// The dynamic shared memory of the blocks of a cluster, each between inaccessible pages.
#pragma once

#include <cstddef>

namespace tokcore::simt {

class SharedMemory {
 public:
  static constexpr size_t kMaxBytes = 227 << 10;  // what a block may have on compute capability 9.0
  static constexpr size_t kAlignment = 1024;

  SharedMemory() = default;
  ~SharedMemory() { release(); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  void start(int blocks, size_t bytes);  // fills with 0xff
  unsigned char* base(int rank) const { return pages_ + rank * stride() + kGuardBytes + kWindowBytes - padded(); }
  size_t bytes() const { return bytes_; }
  int blocks() const { return blocks_; }
  int rank_of(const void* p) const;  // -1: not in any block's shared memory
  bool is_guard(const void* p) const;
  bool damaged(int rank) const;  // a write between the end of the memory and the guard page

 private:
  static constexpr size_t kGuardBytes = 1 << 20;  // wide: an index is seldom wrong by a little only
  static constexpr size_t kMarginBytes = 4096;    // filled and verified below the memory
  static constexpr size_t kWindowBytes = 228 << 10;
  static constexpr size_t stride() { return kGuardBytes + kWindowBytes; }
  size_t padded() const { return (bytes_ + kAlignment - 1) / kAlignment * kAlignment; }
  void release();

  unsigned char* pages_ = nullptr;
  size_t bytes_ = 0;
  int blocks_ = 0;
  int mapped_ = 0;
};

}  // namespace tokcore::simt
