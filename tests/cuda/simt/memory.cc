#include "simt/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#include "simt/scheduler.h"

namespace tokcore::simt {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kGuard = 1 << 20;  // at either end: an index is seldom wrong by a little only
constexpr uint32_t kRankShift = 24;
constexpr uint32_t kOffsetMask = (1u << kRankShift) - 1;

std::string hex(const void* p) {
  char text[32];
  std::snprintf(text, sizeof text, "%p", p);
  return text;
}

// The buffers that live, for messages and for verify_buffers.
struct Registry {
  std::mutex mutex;
  std::vector<const GuardedBuffer*> buffers;
};
Registry& registry() {
  static Registry instance;
  return instance;
}

const SharedMemory& shared_memory() { return this_block().scheduler->shared_memory(); }

}  // namespace

// ---- shared memory --------------------------------------------------------------------------------------------------

void check_shared(const void* p, size_t bytes, size_t align, const char* what) {
  const Block& block = this_block();
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(p) - block.shared);
  if (offset >= block.shared_bytes || block.shared_bytes - offset < bytes) {
    fail(std::string(what) + ": " + std::to_string(bytes) + " bytes at " + hex(p) + " are not inside the block's " +
         std::to_string(block.shared_bytes) + " bytes of shared memory (offset " +
         std::to_string(static_cast<ptrdiff_t>(offset)) + ")");
  }
  if (reinterpret_cast<uintptr_t>(p) % align != 0) {
    fail(std::string(what) + ": misaligned, offset " + std::to_string(offset) + " of shared memory is no multiple of " +
         std::to_string(align));
  }
}

void check_global(const void* p, size_t align, const char* what) {
  if (shared_memory().rank_of(p) >= 0) fail(std::string(what) + ": shared memory where global memory is expected");
  if (reinterpret_cast<uintptr_t>(p) % align != 0) {
    fail(std::string(what) + ": misaligned global address " + hex(p) + ", no multiple of " + std::to_string(align) +
         " (" + describe_address(p) + ")");
  }
}

uint32_t shared_address(const void* p) {
  const int rank = shared_memory().rank_of(p);
  const Block& block = this_block();
  // One past the end may be formed, not used.
  if (rank < 0 && p == block.shared + block.shared_bytes) return static_cast<uint32_t>(block.shared_bytes);
  if (rank < 0)
    fail("the shared address of " + hex(p) + ", which is not in shared memory (" + describe_address(p) + ")");
  const auto offset = static_cast<uint32_t>(static_cast<const unsigned char*>(p) - block.blocks[rank].shared);
  return rank == block.rank ? offset : map_shared(offset, static_cast<uint32_t>(rank));
}

uint32_t map_shared(uint32_t address, uint32_t rank) {
  if (rank >= static_cast<uint32_t>(this_block().cluster_size)) {
    fail("mapa: rank " + std::to_string(rank) + " in a cluster of " + std::to_string(this_block().cluster_size));
  }
  return (address & kOffsetMask) | (rank + 1) << kRankShift;
}

int shared_rank(uint32_t address) {
  const uint32_t rank = address >> kRankShift;
  return rank == 0 ? this_block().rank : static_cast<int>(rank) - 1;
}

void* shared_pointer(uint32_t address, size_t bytes, size_t align, const char* what) {
  const int rank = shared_rank(address);
  if (rank >= this_block().cluster_size) fail(std::string(what) + ": not an address of shared memory");
  const Block& block = this_block().blocks[rank];
  const size_t offset = address & kOffsetMask;
  if (offset > block.shared_bytes || block.shared_bytes - offset < bytes) {
    fail(std::string(what) + ": " + std::to_string(bytes) + " bytes at offset " + std::to_string(offset) + " of " +
         std::to_string(block.shared_bytes) + " bytes of shared memory");
  }
  if (offset % align != 0) {
    fail(std::string(what) + ": misaligned, offset " + std::to_string(offset) + " of shared memory is no multiple of " +
         std::to_string(align));
  }
  return block.shared + offset;
}

// ---- global memory --------------------------------------------------------------------------------------------------

GuardedBuffer::GuardedBuffer(size_t bytes, Placement placement, std::string name, size_t alignment)
    : bytes_(bytes), name_(std::move(name)) {
  const size_t inner = std::max<size_t>((bytes + alignment - 1 + kPage - 1) / kPage * kPage, kPage);
  pages_bytes_ = inner + 2 * kGuard;
  void* pages = mmap(nullptr, pages_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  pages_ = static_cast<unsigned char*>(pages);
  std::memset(pages_ + kGuard, 0xff, inner);
  mprotect(pages_, kGuard, PROT_NONE);
  mprotect(pages_ + kGuard + inner, kGuard, PROT_NONE);
  data_ = pages_ + kGuard;
  if (placement == Placement::kEnd) data_ += (inner - bytes) / alignment * alignment;
  const std::lock_guard lock(registry().mutex);
  registry().buffers.push_back(this);
}

GuardedBuffer::~GuardedBuffer() {
  {
    const std::lock_guard lock(registry().mutex);
    std::erase(registry().buffers, this);
  }
  munmap(pages_, pages_bytes_);
}

void GuardedBuffer::protect(Access access) {
  mprotect(pages_ + kGuard, pages_bytes_ - 2 * kGuard,
           access == Access::kReadOnly ? PROT_READ : PROT_READ | PROT_WRITE);
}

std::string GuardedBuffer::damage() const {
  const auto is_written = [](unsigned char byte) { return byte != 0xff; };
  const unsigned char* const end = data_ + bytes_;
  const unsigned char* const pages_end = pages_ + pages_bytes_ - kGuard;
  if (std::any_of(pages_ + kGuard, data_, is_written)) return "buffer " + name_ + ": a write before its beginning";
  if (std::any_of(end, pages_end, is_written)) return "buffer " + name_ + ": a write past its end";
  return "";
}

std::string describe_address(const void* address) {
  const auto* p = static_cast<const unsigned char*>(address);
  const std::lock_guard lock(registry().mutex);
  for (const GuardedBuffer* buffer : registry().buffers) {
    if (static_cast<size_t>(p - buffer->pages_) >= buffer->pages_bytes_) continue;
    const std::string of = " of buffer " + buffer->name_ + " (" + std::to_string(buffer->bytes_) + " bytes)";
    if (p < buffer->data_) return std::to_string(buffer->data_ - p) + " bytes before the beginning" + of;
    const auto offset = static_cast<size_t>(p - buffer->data_);
    if (offset >= buffer->bytes_) return std::to_string(offset - buffer->bytes_) + " bytes past the end" + of;
    return "offset " + std::to_string(offset) + of;
  }
  return "in no buffer of the test";
}

void verify_buffers() {
  const std::lock_guard lock(registry().mutex);
  for (const GuardedBuffer* buffer : registry().buffers) {
    if (const std::string damage = buffer->damage(); !damage.empty()) throw Error(damage);
  }
}

}  // namespace tokcore::simt
