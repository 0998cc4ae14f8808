// Device memory of a call: planned first, then handed out of one allocation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tokcore::cuda {

// Pieces aligned to 256 bytes. Without memory it only counts what would be needed.
class WorkspacePlan {
 public:
  explicit WorkspacePlan(void* base = nullptr) : base_(static_cast<unsigned char*>(base)) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t kAlignment = 256;
  unsigned char* base_;
  size_t used_ = 0;
};

}  // namespace tokcore::cuda
