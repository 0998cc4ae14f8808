// Memory under checks: shared memory of the blocks of a cluster, and buffers between guard pages for global memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace tokcore::simt {

// ---- shared memory --------------------------------------------------------------------------------------------------

// fail()s unless [p, p + bytes) lies in this block's shared memory and p is a multiple of align.
void check_shared(const void* p, size_t bytes, size_t align, const char* what);

// fail()s unless p is a multiple of align and does not lie in shared memory. Bounds are up to GuardedBuffer.
void check_global(const void* p, size_t align, const char* what);

// The 32-bit address that PTX sees. Bits 0..23 are the offset in a block's shared memory; bits 24.. are 0 for this
// block or 1 + rank for a block of the cluster (mapa).
uint32_t shared_address(const void* p);
uint32_t map_shared(uint32_t address, uint32_t rank);

// Back to a pointer, with the checks of check_shared.
void* shared_pointer(uint32_t address, size_t bytes, size_t align, const char* what);
int shared_rank(uint32_t address);  // whose shared memory it is

// ---- global memory --------------------------------------------------------------------------------------------------

// Global memory with inaccessible pages at either end: an access past the end that the data lies against fails and
// names the buffer. Filled with 0xff, which is NaN in every floating-point type.
class GuardedBuffer {
 public:
  enum class Placement { kEnd, kStart };  // which inaccessible pages the data touches
  enum class Access { kReadWrite, kReadOnly };

  // With kEnd the data begins at the last multiple of `alignment` from which it fits: what is left over at the end,
  // less than `alignment` bytes, is verified after every launch.
  GuardedBuffer(size_t bytes, Placement placement, std::string name, size_t alignment = 16);
  ~GuardedBuffer();
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  const std::string& name() const { return name_; }
  void protect(Access access);  // kReadOnly: a kernel that writes here fails

  // "" or what was written beside the data.
  std::string damage() const;

 private:
  friend std::string describe_address(const void* address);
  unsigned char* pages_;  // the mapping, inaccessible pages included
  size_t pages_bytes_;
  unsigned char* data_;
  size_t bytes_;
  std::string name_;
};

// Which live GuardedBuffer the address belongs to or lies beside, in words.
std::string describe_address(const void* address);

// Throws an Error if any live GuardedBuffer is damaged.
void verify_buffers();

}  // namespace tokcore::simt
