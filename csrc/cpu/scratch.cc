#include "tokcore/cpu/scratch.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

namespace tokcore::cpu {
namespace {

// Huge pages spare the TLB when a kernel walks its scratch; the alignment lets the kernel grant them.
constexpr size_t kHugePage = size_t{2} << 20;

char* allocate(size_t bytes) {
  const size_t alignment = bytes >= kHugePage ? kHugePage : 4096;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  void* data = std::aligned_alloc(alignment, rounded);
  if (data == nullptr) throw std::bad_alloc();
  if (alignment == kHugePage) madvise(data, rounded, MADV_HUGEPAGE);
  return static_cast<char*>(data);
}

struct Cached {
  char* data = nullptr;
  size_t bytes = 0;
  ~Cached() { std::free(data); }
};
thread_local Cached cached;

}  // namespace

Scratch::Scratch(size_t bytes) : data_(nullptr), bytes_(bytes) {
  if (cached.bytes >= bytes && cached.data != nullptr) {
    data_ = cached.data;
    bytes_ = cached.bytes;
    cached.data = nullptr;  // a nested call must not get the same block
    cached.bytes = 0;
  } else {
    data_ = allocate(bytes == 0 ? 1 : bytes);
  }
}

Scratch::~Scratch() {
  if (bytes_ <= kCachedBytes && bytes_ > cached.bytes) {
    std::free(cached.data);
    cached.data = data_;
    cached.bytes = bytes_;
  } else {
    std::free(data_);
  }
}

void expect_large_writes(void* data, size_t bytes) {
  const uintptr_t first = (reinterpret_cast<uintptr_t>(data) + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (reinterpret_cast<uintptr_t>(data) + bytes) / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

}  // namespace tokcore::cpu
