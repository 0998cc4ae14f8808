// A block of CUDA threads under execution, and the cluster of blocks that one scheduler runs together.
#pragma once

#include <vector_types.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

namespace tokcore::simt {

class AsyncQueue;
class Scheduler;
struct Thread;
struct Warp;

// What a primitive keeps per block (barriers, open copies). Made on first use, gone with the block.
class BlockState {
 public:
  virtual ~BlockState() = default;
  virtual void on_thread_exit(Thread&) {}  // may fail(): called as that thread, after its kernel returned
  virtual void on_block_end() {}           // may fail(): called as thread 0, after every thread exited
};

struct Block {
  uint3 index;  // blockIdx
  dim3 dim;     // blockDim
  dim3 grid;    // gridDim
  int num_threads;
  int rank;  // within the cluster
  int cluster_size;
  unsigned char* shared;  // dynamic shared memory, 1024-byte aligned, 0xff at the start
  size_t shared_bytes;
  Thread* threads;  // [num_threads]
  Warp* warps;      // [ceil(num_threads / 32)]
  Block* blocks;    // [cluster_size], the cluster's
  Scheduler* scheduler;
  int live_threads;

  // The T of this block; T derives from BlockState and has a default constructor.
  template <class T>
  T& state() {
    static const char key = 0;
    for (State& s : states) {
      if (s.key == &key) return static_cast<T&>(*s.value);
    }
    states.push_back({&key, std::make_unique<T>()});
    return static_cast<T&>(*states.back().value);
  }

  struct State {
    const void* key;
    std::unique_ptr<BlockState> value;
  };
  std::vector<State> states;
};

}  // namespace tokcore::simt
