#include "simt/cluster.h"

#include <string>
#include <vector>

#include "simt/mbarrier.h"
#include "simt/thread.h"

namespace tokcore::simt {
namespace {

// Of the whole cluster, kept by its first block.
class ClusterBarrier : public BlockState {
 public:
  uint64_t phase = 0;  // number of completed phases
  int arrived = 0;     // threads that arrived in the open phase
};

constexpr uint64_t kNotArrived = UINT64_MAX;

// Which threads of a block are between arrive and wait, and at which phase they arrived.
class ClusterArrivals : public BlockState {
 public:
  uint64_t& of(const Thread& thread) {
    if (phases_.empty()) phases_.assign(static_cast<size_t>(thread.block->num_threads), kNotArrived);
    return phases_[static_cast<size_t>(thread.linear)];
  }
  void on_thread_exit(Thread& thread) override {
    if (of(thread) != kNotArrived) fail("exits between barrier.cluster.arrive and barrier.cluster.wait");
  }

 private:
  std::vector<uint64_t> phases_;
};

ClusterBarrier& cluster_barrier() { return this_block().blocks[0].state<ClusterBarrier>(); }

// Threads that have exited are not waited for.
void finish_phase(ClusterBarrier& barrier) {
  int live = 0;
  for (int rank = 0; rank < this_block().cluster_size; ++rank) live += this_block().blocks[rank].live_threads;
  if (barrier.arrived < live) return;
  ++barrier.phase;
  barrier.arrived = 0;
}

void converge(const char* primitive) {
  warp_collective(primitive, primitive, kFullMask, &internal::current, [](void* const*) {});
}

}  // namespace

uint32_t block_rank_in_cluster() { return static_cast<uint32_t>(this_block().rank); }

dim3 block_id_in_cluster() { return dim3(block_rank_in_cluster(), 0, 0); }

dim3 cluster_shape() { return dim3(static_cast<unsigned>(this_block().cluster_size), 1, 1); }

dim3 cluster_id_in_grid() {
  const Block& block = this_block();
  return dim3(block.index.x / static_cast<unsigned>(block.cluster_size), block.index.y, block.index.z);
}

dim3 cluster_grid_dims() {
  const Block& block = this_block();
  return dim3(block.grid.x / static_cast<unsigned>(block.cluster_size), block.grid.y, block.grid.z);
}

void cluster_arrive(bool relaxed) {
  constexpr const char* kName = "barrier.cluster.arrive";
  converge(kName);
  uint64_t& mine = this_block().state<ClusterArrivals>().of(this_thread());
  if (mine != kNotArrived) fail(std::string(kName) + " a second time without barrier.cluster.wait");
  if (!relaxed) publish_mbarriers();
  ClusterBarrier& barrier = cluster_barrier();
  mine = barrier.phase;
  ++barrier.arrived;
  finish_phase(barrier);
}

void cluster_wait() {
  constexpr const char* kName = "barrier.cluster.wait";
  converge(kName);
  uint64_t& mine = this_block().state<ClusterArrivals>().of(this_thread());
  if (mine == kNotArrived) fail(std::string(kName) + " without barrier.cluster.arrive");
  ClusterBarrier& barrier = cluster_barrier();
  wait_until(
      [&] {
        if (barrier.phase == mine) finish_phase(barrier);  // the last thread that was missing may have exited
        return barrier.phase != mine;
      },
      [&] {
        return std::string(kName) + " in phase " + std::to_string(barrier.phase) + ": " +
               std::to_string(barrier.arrived) + " threads of the cluster have arrived";
      });
  mine = kNotArrived;
}

}  // namespace tokcore::simt
