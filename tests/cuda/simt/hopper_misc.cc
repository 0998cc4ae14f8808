#include "simt/hopper_misc.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include "simt/memory.h"
#include "simt/policy.h"
#include "simt/thread.h"
#include "simt/warpgroup_log.h"

namespace tokcore::simt {
namespace {

constexpr uint32_t kRegistersOfBlock = 64 << 10;
constexpr uint32_t kRegisterStep = 8;
constexpr uint32_t kMaxRegisters = 256;
constexpr uint32_t kMinRegisters = 24;
constexpr uint32_t kCompilerMaximum = 255;
constexpr uint32_t kWarpgroupThreads = 128;

struct RegisterChange {
  bool increases;
  uint32_t count;
  bool operator==(const RegisterChange&) const = default;
  std::string describe() const {
    return std::string("setmaxnreg.") + (increases ? "inc " : "dec ") + std::to_string(count);
  }
};

// Registers per thread of each warp, and the threads' total, which a block never exceeds.
class RegisterBudget : public BlockState {
 public:
  void on_block_end() override { log.check_complete(); }
  void prepare(const Block& block) {
    if (!of_warp.empty()) return;
    const auto threads = static_cast<uint32_t>(block.num_threads);
    // What the compiler may use for one block of this size on a multiprocessor.
    const uint32_t share = std::min(kCompilerMaximum, kRegistersOfBlock / threads) / kRegisterStep * kRegisterStep;
    of_warp.assign((threads + 31) / 32, share);
    limit = share * threads;
  }
  uint32_t used() const {
    uint32_t sum = 0;
    for (uint32_t registers : of_warp) sum += registers * 32;
    return sum;
  }
  std::vector<uint32_t> of_warp;
  uint32_t limit = 0;
  WarpgroupLog<RegisterChange> log;
};

RegisterBudget& checked_budget(const RegisterChange& change) {
  Block& block = this_block();
  auto& budget = block.state<RegisterBudget>();
  budget.prepare(block);
  if (block.num_threads % kWarpgroupThreads != 0) {
    fail(change.describe() + ": the block is not made of whole warpgroups of 128 threads");
  }
  if (change.count < kMinRegisters || change.count > kMaxRegisters || change.count % kRegisterStep != 0) {
    fail(change.describe() + ": the count must be a multiple of 8 in [24, 256]");
  }
  return budget;
}

// Rendezvous of the warp, which must ask for the same.
template <class Complete>
void change_registers(const RegisterChange& change, RegisterBudget& budget, const Complete& complete) {
  static const char key = 0;
  RegisterChange mine = change;
  warp_collective(&key, "setmaxnreg", kFullMask, &mine, [&](void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      const auto& other = *static_cast<RegisterChange*>(lanes[lane]);
      if (!(other == change)) fail(change.describe() + ": another lane of the warp executes " + other.describe());
    }
    budget.log.record(this_thread(), change);
    complete(budget.of_warp[static_cast<size_t>(this_thread().warp)]);
  });
}

// Rendezvous of a warp that brings nothing.
void converge(const void* key, const char* name) {
  warp_collective(key, name, kFullMask, &internal::current, [](void* const*) {});
}

}  // namespace

Election elect() {
  static const char key = 0;
  int lane = 0;
  switch (policy().order) {
    case Order::kInOrder:
      lane = 0;
      break;
    case Order::kReversed:
      lane = 31;
      break;
    case Order::kRandom:
      lane = static_cast<int>(Random(policy().seed).below(32));
      break;
  }
  converge(&key, "elect.sync");
  return {lane == this_thread().lane, static_cast<uint32_t>(lane)};
}

int canonical_warp_idx_sync() {
  static const char key = 0;
  converge(&key, "canonical_warp_idx_sync");
  return this_thread().warp;
}

int canonical_warp_group_idx() {
  static const char key = 0;
  converge(&key, "canonical_warp_group_idx");
  return this_thread().warpgroup;
}

int canonical_warp_idx() { return this_thread().warp; }

int canonical_lane_idx() { return this_thread().lane; }

void increase_registers(uint32_t count) {
  const RegisterChange change{true, count};
  RegisterBudget& budget = checked_budget(change);
  change_registers(change, budget, [&](uint32_t registers) {
    if (count < registers) fail(change.describe() + ": the warp has " + std::to_string(registers) + " already");
  });
  uint32_t& mine = budget.of_warp[static_cast<size_t>(this_thread().warp)];
  wait_until([&] { return budget.used() - mine * 32 + count * 32 <= budget.limit; },
             [&] {
               return change.describe() + ": the block uses " + std::to_string(budget.used()) + " of " +
                      std::to_string(budget.limit) + " registers";
             });
  mine = count;
}

void decrease_registers(uint32_t count) {
  const RegisterChange change{false, count};
  RegisterBudget& budget = checked_budget(change);
  change_registers(change, budget, [&](uint32_t& registers) {
    if (count > registers) fail(change.describe() + ": the warp has only " + std::to_string(registers));
    registers = count;
  });
}

void stmatrix(int matrices, bool transposed, void* row, const uint32_t* sources) {
  static const char key = 0;
  const int num_rows = matrices * 8;
  if (this_thread().lane < num_rows) check_shared(row, 16, 16, "stmatrix");
  struct Slot {
    void* row;
    const uint32_t* sources;
    int matrices;
    bool transposed;
  } mine{row, sources, matrices, transposed};
  warp_collective(&key, "stmatrix", kFullMask, &mine, [&](void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      const Slot& other = *static_cast<Slot*>(lanes[lane]);
      if (other.matrices != matrices || other.transposed != transposed)
        fail("stmatrix: the warp's lanes store different shapes");
    }
    // Lane l holds elements 2(l % 4) and 2(l % 4) + 1 of row l / 4 of a matrix; of its column l / 4 if transposed.
    for (int m = 0; m < matrices; ++m) {
      for (int lane = 0; lane < 32; ++lane) {
        const uint32_t pair = static_cast<Slot*>(lanes[lane])->sources[m];
        for (int i = 0; i < 2; ++i) {
          const auto element = static_cast<uint16_t>(pair >> (16 * i));
          const int along = 2 * (lane % 4) + i;
          const int across = lane / 4;
          const int target_row = transposed ? along : across;
          const int target_column = transposed ? across : along;
          auto* target = static_cast<unsigned char*>(static_cast<Slot*>(lanes[m * 8 + target_row])->row);
          std::memcpy(target + target_column * 2, &element, 2);
        }
      }
    }
  });
}

void launch_dependent_grids() {
  if (!in_kernel()) fail("griddepcontrol.launch_dependents outside of a kernel");
}

void wait_on_dependent_grids() {
  if (!in_kernel()) fail("griddepcontrol.wait outside of a kernel");
}

}  // namespace tokcore::simt
