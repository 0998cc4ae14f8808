#include "simt/shared_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace tokcore::simt {

void SharedMemory::start(int blocks, size_t bytes) {
  if (blocks > mapped_) {
    release();
    const size_t size = blocks * stride() + kGuardBytes;
    void* pages = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    pages_ = static_cast<unsigned char*>(pages);
    mapped_ = blocks;
    for (int rank = 0; rank <= blocks; ++rank) mprotect(pages_ + rank * stride(), kGuardBytes, PROT_NONE);
  }
  blocks_ = blocks;
  bytes_ = bytes;
  // With a margin below it: writes before the beginning show there.
  for (int rank = 0; rank < blocks; ++rank) {
    unsigned char* first = std::max(base(rank) - kMarginBytes, pages_ + rank * stride() + kGuardBytes);
    std::memset(first, 0xff, base(rank) + padded() - first);
  }
}

int SharedMemory::rank_of(const void* p) const {
  for (int rank = 0; rank < blocks_; ++rank) {
    if (static_cast<size_t>(static_cast<const unsigned char*>(p) - base(rank)) < bytes_) return rank;
  }
  return -1;
}

bool SharedMemory::is_guard(const void* p) const {
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(p) - pages_);
  return pages_ != nullptr && offset < mapped_ * stride() + kGuardBytes && offset % stride() < kGuardBytes;
}

bool SharedMemory::damaged(int rank) const {
  const auto intact = [](const unsigned char* begin, const unsigned char* end) {
    return std::all_of(begin, end, [](unsigned char byte) { return byte == 0xff; });
  };
  const unsigned char* first = std::max(base(rank) - kMarginBytes, pages_ + rank * stride() + kGuardBytes);
  return !intact(first, base(rank)) || !intact(base(rank) + bytes_, base(rank) + padded());
}

void SharedMemory::release() {
  if (pages_ != nullptr) munmap(pages_, mapped_ * stride() + kGuardBytes);
  pages_ = nullptr;
  mapped_ = 0;
}

}  // namespace tokcore::simt
