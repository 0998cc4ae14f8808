#include "simt/launch.h"

#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <numeric>
#include <thread>

#include "simt/fault.h"
#include "simt/memory.h"
#include "simt/scheduler.h"

namespace tokcore::simt {
namespace {

void check_shape(const LaunchShape& shape) {
  const std::string kernel = std::string("kernel ") + shape.name + ": ";
  const auto require = [&](bool condition, const std::string& message) {
    if (!condition) throw Error(kernel + message);
  };
  const uint64_t threads = uint64_t{shape.block.x} * shape.block.y * shape.block.z;
  require(threads >= 1 && threads <= 1024, std::to_string(threads) + " threads in a block, expected 1 to 1024");
  require(shape.block.z <= 64, "a block's z extent is at most 64");
  require(shape.grid.x >= 1 && shape.grid.y >= 1 && shape.grid.z >= 1, "an empty grid");
  require(shape.grid.x <= 0x7fffffff && shape.grid.y <= 65535 && shape.grid.z <= 65535,
          "the grid exceeds 2147483647 x 65535 x 65535 blocks");
  require(shape.shared_bytes <= SharedMemory::kMaxBytes, std::to_string(shape.shared_bytes) +
                                                             " bytes of shared memory, at most " +
                                                             std::to_string(SharedMemory::kMaxBytes) + " exist");
  require(shape.cluster >= 1 && shape.cluster <= 16, "clusters have 1 to 16 blocks");
  require(shape.grid.x % shape.cluster == 0, "the grid's x extent is no multiple of the cluster's");
}

// The clusters of a grid, taken by several host threads in the policy's order.
class Dealer {
 public:
  explicit Dealer(uint32_t count) : count_(count) {
    if (policy().order != Order::kRandom) return;
    order_.resize(count);
    std::iota(order_.begin(), order_.end(), 0u);
    Random random(policy().seed);
    for (uint32_t i = count; i > 1; --i) std::swap(order_[i - 1], order_[random.below(i)]);
  }

  bool take(uint32_t& cluster) {
    const uint32_t i = next_++;
    if (i >= count_ || stopped_) return false;
    cluster = policy().order == Order::kInOrder ? i : policy().order == Order::kReversed ? count_ - 1 - i : order_[i];
    return true;
  }

  void stop(uint32_t cluster, const std::string& error) {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
    if (cluster < failed_cluster_) {
      failed_cluster_ = cluster;
      error_ = error;
    }
  }

  void rethrow() const {
    if (stopped_) throw Error(error_);
  }

 private:
  uint32_t count_;
  std::vector<uint32_t> order_;
  std::atomic<uint32_t> next_{0};
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;
  uint32_t failed_cluster_ = std::numeric_limits<uint32_t>::max();
  std::string error_;
};

void work(const LaunchShape& shape, Scheduler& scheduler, Dealer& dealer) {
  const SignalStack signal_stack;
  uint32_t cluster = 0;
  while (dealer.take(cluster)) {
    try {
      scheduler.run_cluster(shape, cluster);
    } catch (const std::exception& error) {
      dealer.stop(cluster, error.what());
    }
  }
}

}  // namespace

void run_grid(const LaunchShape& shape) {
  if (in_kernel()) fail("a launch from within a kernel");
  check_shape(shape);
  static std::mutex one_launch_at_a_time;
  const std::lock_guard lock(one_launch_at_a_time);
  // Kept from launch to launch: their stacks are in use already, new ones would cost page faults.
  static std::vector<std::unique_ptr<Scheduler>> schedulers;

  const uint64_t clusters = uint64_t{shape.grid.x / shape.cluster} * shape.grid.y * shape.grid.z;
  if (clusters > std::numeric_limits<uint32_t>::max())
    throw Error(std::string("kernel ") + shape.name + ": grid too large");
  const size_t workers = std::min<size_t>(std::max(policy().workers, 1), clusters);
  while (schedulers.size() < workers) schedulers.push_back(std::make_unique<Scheduler>());

  const FaultHandlers fault_handlers;
  Dealer dealer(static_cast<uint32_t>(clusters));
  std::vector<std::thread> threads;
  for (size_t i = 1; i < workers; ++i) {
    threads.emplace_back([&, i] { work(shape, *schedulers[i], dealer); });
  }
  work(shape, *schedulers[0], dealer);
  for (std::thread& thread : threads) thread.join();
  dealer.rethrow();
  verify_buffers();
}

}  // namespace tokcore::simt
