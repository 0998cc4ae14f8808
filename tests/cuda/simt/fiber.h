// Stacks and the switch between them (x86-64, System V calling convention).
#pragma once

#include <cstddef>

namespace tokcore::simt {

// Saves the callee-saved registers and the stack pointer to *save, and continues where `to` was saved.
extern "C" void tokcore_simt_switch(void** save, void* to);

// Stacks of equal size, one mapping, inaccessible pages below each. They are reused from block to block.
class StackPool {
 public:
  static constexpr size_t kStackBytes = size_t{128} << 10;
  static constexpr size_t kGuardBytes = size_t{64} << 10;  // more than any one frame

  StackPool() = default;
  ~StackPool() { release(); }
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;

  void reserve(size_t count);  // gives up all stacks if there are fewer
  unsigned char* top(size_t i) const;
  bool is_guard(const void* address) const;

 private:
  static constexpr size_t kStride = kStackBytes + kGuardBytes;
  void release();

  unsigned char* base_ = nullptr;
  size_t count_ = 0;
};

// A stack pointer from which tokcore_simt_switch enters `entry`, which must not return.
void* prepare_stack(unsigned char* top, void (*entry)());

}  // namespace tokcore::simt
