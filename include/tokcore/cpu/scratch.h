// Scratch memory of a call: planned first, then taken in one piece from a cache, so that a warm call allocates nothing.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tokcore::cpu {

// A piece of scratch for each thread.
template <class T>
struct PiecePerThread {
  char* first = nullptr;
  int64_t stride = 0;  // bytes
  T* operator[](int worker) const { return reinterpret_cast<T*>(first + worker * stride); }
};

// Hands out 64-byte aligned pieces of one block. Without a block it only counts what would be needed.
class Arena {
 public:
  explicit Arena(char* base = nullptr) : base_(base) {}

  template <class T>
  T* take(int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return piece;
  }
  // To be called before the part of each thread. Processors fetch ahead of what a thread reads, up to the end of the
  // page: a thread that streams to the end of its part would keep taking the first lines of the next part from the
  // thread that writes there.
  void separate_threads() { used_ = (used_ + kPage - 1) / kPage * kPage + kPage; }
  // `count` elements for each of `threads` threads.
  template <class T>
  PiecePerThread<T> take_per_thread(int threads, int64_t count) {
    PiecePerThread<T> pieces;
    for (int i = 0; i < threads; ++i) {
      separate_threads();
      char* piece = reinterpret_cast<char*>(take<T>(count));
      if (i == 0) pieces.first = piece;
      if (i == 1) pieces.stride = piece - pieces.first;
    }
    separate_threads();
    return pieces;
  }
  size_t used() const { return used_; }

 private:
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kPage = 4096;
  char* base_;
  size_t used_ = 0;
};

// One block for the duration of a call. Blocks of at most kCachedBytes stay with the calling thread for its next call.
class Scratch {
 public:
  static constexpr size_t kCachedBytes = size_t{32} << 20;
  explicit Scratch(size_t bytes);  // throws std::bad_alloc
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
  size_t bytes_;
};

// One piece of `bytes` for each thread, apart as Arena::separate_threads says.
class ScratchPerThread {
 public:
  ScratchPerThread(int threads, size_t bytes) : ScratchPerThread(plan(Arena(), threads, bytes), threads, bytes) {}
  char* operator[](int worker) const { return pieces_[worker]; }

 private:
  struct Plan {
    size_t bytes;
    PiecePerThread<char> pieces;
  };
  static Plan plan(Arena arena, int threads, size_t bytes) {
    const PiecePerThread<char> pieces = arena.take_per_thread<char>(threads, static_cast<int64_t>(bytes));
    return {arena.used(), pieces};
  }
  ScratchPerThread(const Plan& counted, int threads, size_t bytes)
      : scratch_(counted.bytes), pieces_(plan(Arena(scratch_.data()), threads, bytes).pieces) {}
  Scratch scratch_;
  PiecePerThread<char> pieces_;
};

// Asks for huge pages under a large output that is about to be written for the first time: its page faults otherwise
// cost more than its writes.
void expect_large_writes(void* data, size_t bytes);

}  // namespace tokcore::cpu
