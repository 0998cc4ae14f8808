#include "simt/fiber.h"

#include <sys/mman.h>

#include <cstdint>
#include <new>

asm(R"(
.text
.globl tokcore_simt_switch
.hidden tokcore_simt_switch
.type tokcore_simt_switch, @function
tokcore_simt_switch:
  .cfi_startproc
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
  .cfi_endproc
.size tokcore_simt_switch, .-tokcore_simt_switch
)");

namespace tokcore::simt {

void StackPool::reserve(size_t count) {
  if (count <= count_) return;
  release();
  void* pages =
      mmap(nullptr, count * kStride, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (pages == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<unsigned char*>(pages);
  count_ = count;
  for (size_t i = 0; i < count; ++i) mprotect(base_ + i * kStride, kGuardBytes, PROT_NONE);
}

// Neighbours begin at different offsets of a page: equal ones would compete for the same sets of the cache.
unsigned char* StackPool::top(size_t i) const { return base_ + (i + 1) * kStride - (i % 32) * 320; }

bool StackPool::is_guard(const void* address) const {
  const auto offset = static_cast<size_t>(static_cast<const unsigned char*>(address) - base_);
  return base_ != nullptr && offset < count_ * kStride && offset % kStride < kGuardBytes;
}

void StackPool::release() {
  if (base_ != nullptr) munmap(base_, count_ * kStride);
  base_ = nullptr;
  count_ = 0;
}

void* prepare_stack(unsigned char* top, void (*entry)()) {
  // Entered by `ret`, so the stack looks as after a call: 8 bytes below a multiple of 16.
  auto** slot = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(top) & ~uintptr_t{63});
  *--slot = nullptr;  // where entry would return to
  *--slot = reinterpret_cast<void*>(entry);
  for (int saved_register = 0; saved_register < 6; ++saved_register) *--slot = nullptr;
  return slot;
}

}  // namespace tokcore::simt
