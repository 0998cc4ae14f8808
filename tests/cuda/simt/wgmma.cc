#include "simt/wgmma.h"

#include <cstring>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "simt/async_proxy.h"
#include "simt/inclination.h"
#include "simt/matrix_descriptor.h"
#include "simt/memory.h"
#include "simt/thread.h"
#include "simt/warpgroup_log.h"
#include "simt/wgmma_compute.h"

namespace tokcore::simt {
namespace {

constexpr uint32_t kPoison = 0xffffffff;  // NaN, and -1
constexpr int kRegistersOfA = 4;

// One of the instructions that a warpgroup executes together.
struct Instruction {
  const char* name;
  uint64_t a, b;  // descriptors; a is 0 where A comes from registers
  int argument;   // accumulate, or what a wait allows
  bool operator==(const Instruction&) const = default;
  std::string describe() const { return std::string(name) + " (argument " + std::to_string(argument) + ")"; }
};

// What one thread brings to a product.
struct Operands {
  const WgmmaOp* op;
  void* const* accumulators;
  const uint32_t* const* a;  // null: from shared memory
  uint64_t descriptor_a, descriptor_b;
  bool accumulate;
};

// The accumulators of a warp while the tensor core owns them. Their registers show poison, or, once everything that was
// issued on them is done, the result: a thread that touches them before its wait gets the one or the other.
struct Accumulators {
  const WgmmaOp* op;
  std::vector<uint32_t*> registers;  // [num_accumulators][32]
  std::vector<uint32_t> shown;       // [num_accumulators][32]
  WgmmaTile tile;
  int num_unfinished = 0;   // products issued, not computed
  uint64_t last_group = 0;  // of the newest product
};

struct Product {
  WgmmaOp op;
  bool accumulate;
  uint64_t a, b;
  uint64_t group;
  std::shared_ptr<Accumulators> accumulators;
  bool done = false;
  // Of A from registers: where they are, and what they held.
  const uint32_t* a_registers[32][kRegistersOfA];
  uint32_t a_values[32][kRegistersOfA];
};

struct WarpState {
  bool is_fenced = false;                                   // since the program last owned the registers
  uint64_t num_commits = 0;                                 // the group that is open
  std::deque<std::shared_ptr<Product>> products;            // issued, not waited for
  std::vector<std::shared_ptr<Accumulators>> accumulators;  // in flight
};

std::string at_register(const char* what, int lane, int index) {
  return std::string(what) + " register " + std::to_string(index) + " of lane " + std::to_string(lane);
}

class WgmmaState : public BlockState {
 public:
  WarpState& of(const Thread& thread) {
    if (warps_.empty()) warps_.resize(static_cast<size_t>(thread.block->num_threads + 31) / 32);
    return warps_[static_cast<size_t>(thread.warp)];
  }
  void on_thread_exit(Thread& thread) override {
    const WarpState& warp = of(thread);
    if (warp.products.empty()) return;
    const Product& oldest = *warp.products.front();
    if (oldest.group == warp.num_commits)
      fail(std::string("exits with a product that no wgmma.commit_group followed: ") + oldest.op.name);
    fail(std::string("exits without wgmma.wait_group for ") + oldest.op.name);
  }
  void on_block_end() override { log.check_complete(); }

  const std::vector<WarpState>& warps() const { return warps_; }

  WarpgroupLog<Instruction> log;
  WgmmaOperands operands;  // of the product that is being computed

 private:
  std::vector<WarpState> warps_;
};

// ---- the accumulator registers --------------------------------------------------------------------------------------

uint32_t bits_at(const WgmmaOp& op, const WgmmaTile& tile, int lane, int index) {
  const WgmmaPlace place = wgmma_place(op, lane, index);
  const int at = place.row * op.n + place.column;
  uint32_t bits;
  if (op.d == WgmmaType::kF16) {
    const _Float16 pair[] = {static_cast<_Float16>(tile.f32[at]), static_cast<_Float16>(tile.f32[at + 1])};
    std::memcpy(&bits, pair, 4);
  } else {
    std::memcpy(&bits, &tile.f32[at], 4);
  }
  return bits;
}

void set_at(const WgmmaOp& op, WgmmaTile& tile, int lane, int index, uint32_t bits) {
  const WgmmaPlace place = wgmma_place(op, lane, index);
  const int at = place.row * op.n + place.column;
  if (op.d == WgmmaType::kF16) {
    _Float16 pair[2];
    std::memcpy(pair, &bits, 4);
    tile.f32[at] = static_cast<float>(pair[0]);
    tile.f32[at + 1] = static_cast<float>(pair[1]);
  } else {
    std::memcpy(&tile.f32[at], &bits, 4);
  }
}

// fail()s if the program wrote to a register that is in flight.
void check_untouched(const Accumulators& accumulators) {
  for (size_t i = 0; i < accumulators.registers.size(); ++i) {
    if (*accumulators.registers[i] != accumulators.shown[i]) {
      fail(at_register("accumulator", static_cast<int>(i % 32), static_cast<int>(i / 32)) +
           " was written before wgmma.wait_group of " + accumulators.op->name);
    }
  }
}

void show_poison(Accumulators& accumulators) {
  for (size_t i = 0; i < accumulators.registers.size(); ++i) {
    accumulators.shown[i] = kPoison;
    *accumulators.registers[i] = kPoison;
  }
}

void show_result(Accumulators& accumulators) {
  for (size_t i = 0; i < accumulators.registers.size(); ++i) {
    accumulators.shown[i] =
        bits_at(*accumulators.op, accumulators.tile, static_cast<int>(i % 32), static_cast<int>(i / 32));
    *accumulators.registers[i] = accumulators.shown[i];
  }
}

// ---- operands -------------------------------------------------------------------------------------------------------

// Rows of 32 bytes, k fastest, or 16 rows of k: visit(offset of a 16-byte chunk, which of the rows, where in the row).
template <class Visit>
void for_each_chunk(const MatrixDescriptor& matrix, bool is_mn_major, uint32_t first, uint32_t count,
                    const Visit& visit) {
  if (is_mn_major) {
    for (uint32_t k = 0; k < 16; ++k) {
      for (uint32_t i = 0; i < count; i += 8) visit(matrix.mn_major(k, (first + i) / 8), k, i * 2);
    }
  } else {
    for (uint32_t row = 0; row < count; ++row) {
      for (uint32_t chunk = 0; chunk < 2; ++chunk) visit(matrix.k_major(first + row, chunk), row, chunk * 16);
    }
  }
}

void read_chunks(const char* name, uint64_t descriptor, bool is_mn_major, uint32_t first, uint32_t count,
                 unsigned char* to) {
  Block& block = this_block();
  auto& view = block.state<AsyncView>();
  const uint32_t row_bytes = is_mn_major ? count * 2 : kWgmmaBytesOfK;
  for_each_chunk(MatrixDescriptor::decode(descriptor), is_mn_major, first, count,
                 [&](uint32_t offset, uint32_t row, uint32_t at) {
                   if (offset + 16 > block.shared_bytes) {
                     fail(std::string(name) + ": the matrix descriptor leads to shared offset " +
                          std::to_string(offset) + " of " + std::to_string(block.shared_bytes));
                   }
                   view.check(block, offset, 16, name);
                   std::memcpy(to + row * row_bytes + at, block.shared + offset, 16);
                 });
}

void transpose_to_k_major(const unsigned char* from, unsigned char* to) {
  for (int k = 0; k < 16; ++k) {
    for (int row = 0; row < kWgmmaRows; ++row)
      std::memcpy(to + (row * 16 + k) * 2, from + (k * kWgmmaRows + row) * 2, 2);
  }
}

void read_operands(const Product& product, int warp_in_group, WgmmaOperands& operands) {
  const WgmmaOp& op = product.op;
  const auto first_row = static_cast<uint32_t>(warp_in_group * kWgmmaRows);
  if (op.a_from_registers) {
    // Register i of lane l: row l / 4 + 8 (i % 2), bytes 16 (i / 2) + 4 (l % 4) and the three after.
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < kRegistersOfA; ++i) {
        const int row = lane / 4 + 8 * (i % 2);
        std::memcpy(operands.a + row * kWgmmaBytesOfK + i / 2 * 16 + lane % 4 * 4, &product.a_values[lane][i], 4);
      }
    }
  } else if (op.a_is_mn_major) {
    unsigned char by_k[kWgmmaRows * kWgmmaBytesOfK];
    read_chunks(op.name, product.a, true, first_row, kWgmmaRows, by_k);
    transpose_to_k_major(by_k, operands.a);
  } else {
    read_chunks(op.name, product.a, false, first_row, kWgmmaRows, operands.a);
  }
  read_chunks(op.name, product.b, op.b_is_mn_major, 0, static_cast<uint32_t>(op.n), operands.b);
}

bool reads(const Product& product, int warp_in_group, uint32_t offset, uint32_t bytes) {
  const WgmmaOp& op = product.op;
  bool found = false;
  const auto visit = [&](uint32_t chunk, uint32_t, uint32_t) {
    found = found || (chunk < offset + bytes && offset < chunk + 16);
  };
  if (!op.a_from_registers) {
    for_each_chunk(MatrixDescriptor::decode(product.a), op.a_is_mn_major,
                   static_cast<uint32_t>(warp_in_group * kWgmmaRows), kWgmmaRows, visit);
  }
  for_each_chunk(MatrixDescriptor::decode(product.b), op.b_is_mn_major, 0, static_cast<uint32_t>(op.n), visit);
  return found;
}

// ---- issue, work, wait ----------------------------------------------------------------------------------------------

void check_a_untouched(const Product& product) {
  if (!product.op.a_from_registers) return;
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < kRegistersOfA; ++i) {
      if (*product.a_registers[lane][i] != product.a_values[lane][i]) {
        fail(at_register("A", lane, i) + " was written, or was a temporary that is gone, before wgmma.wait_group of " +
             product.op.name);
      }
    }
  }
}

void compute(Product& product, int warp_in_group) {
  WgmmaOperands& operands = this_block().state<WgmmaState>().operands;
  read_operands(product, warp_in_group, operands);
  Accumulators& accumulators = *product.accumulators;
  check_untouched(accumulators);
  check_a_untouched(product);
  compute_wgmma(product.op, operands, product.accumulate, accumulators.tile);
  product.done = true;
  if (--accumulators.num_unfinished == 0) show_result(accumulators);
}

// All of the warp's products up to and with this one. Products of a warp are done in order. Nothing but a wait depends
// on them, so that late is as late as it can be.
void compute_until(WarpState& warp, const Product& last) {
  for (const auto& product : warp.products) {
    if (!product->done) compute(*product, this_thread().warp % 4);
    if (product.get() == &last) return;
  }
}

// The accumulators in flight that these registers are, or null.
std::shared_ptr<Accumulators> find_in_flight(const WarpState& warp, void* const* lanes) {
  const auto& first = *static_cast<const Operands*>(lanes[0]);
  for (const auto& accumulators : warp.accumulators) {
    if (accumulators->registers[0] == first.accumulators[0]) return accumulators;
  }
  return nullptr;
}

std::shared_ptr<Accumulators> take_over(const WgmmaOp& op, void* const* lanes) {
  auto accumulators = std::make_shared<Accumulators>();
  accumulators->op = &op;
  const int count = num_accumulators(op);
  accumulators->registers.resize(static_cast<size_t>(count) * 32);
  accumulators->shown.resize(static_cast<size_t>(count) * 32);
  for (int lane = 0; lane < 32; ++lane) {
    const auto& mine = *static_cast<const Operands*>(lanes[lane]);
    for (int i = 0; i < count; ++i) {
      auto* at = static_cast<uint32_t*>(mine.accumulators[i]);
      accumulators->registers[static_cast<size_t>(i * 32 + lane)] = at;
      set_at(op, accumulators->tile, lane, i, *at);
    }
  }
  return accumulators;
}

bool same_shape(const WgmmaOp& a, const WgmmaOp& b) { return a.n == b.n && a.d == b.d; }

void check_uniform(const Operands& mine, void* const* lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    const auto& other = *static_cast<const Operands*>(lanes[lane]);
    if (!(*other.op == *mine.op) || other.descriptor_a != mine.descriptor_a ||
        other.descriptor_b != mine.descriptor_b || other.accumulate != mine.accumulate) {
      fail(std::string(mine.op->name) + ": lane " + std::to_string(lane) +
           " of the warp brings another instruction, descriptor or scale");
    }
  }
}

// As the lane that came last.
void issue(const Operands& mine, void* const* lanes) {
  const WgmmaOp& op = *mine.op;
  const Thread& thread = this_thread();
  if ((thread.warpgroup + 1) * 128 > thread.block->num_threads)
    fail(std::string(op.name) + ": the warpgroup has fewer than 128 threads");
  check_uniform(mine, lanes);
  auto& state = this_block().state<WgmmaState>();
  WarpState& warp = state.of(thread);
  state.log.record(thread, {op.name, mine.descriptor_a, mine.descriptor_b, mine.accumulate});

  auto accumulators = find_in_flight(warp, lanes);
  if (accumulators == nullptr || op.a_from_registers) {
    if (!warp.is_fenced) fail(std::string(op.name) + ": no wgmma.fence since the program last used these registers");
  }
  if (accumulators == nullptr) {
    accumulators = take_over(op, lanes);
    warp.accumulators.push_back(accumulators);
  } else {
    if (!same_shape(*accumulators->op, op))
      fail(std::string(op.name) + ": the accumulators are in flight in another shape, of " + accumulators->op->name);
    check_untouched(*accumulators);
  }
  auto product = std::make_shared<Product>();
  product->op = op;
  product->accumulate = mine.accumulate;
  product->a = mine.descriptor_a;
  product->b = mine.descriptor_b;
  product->group = warp.num_commits;
  product->accumulators = accumulators;
  if (op.a_from_registers) {
    for (int lane = 0; lane < 32; ++lane) {
      for (int i = 0; i < kRegistersOfA; ++i) {
        product->a_registers[lane][i] = static_cast<const Operands*>(lanes[lane])->a[i];
        product->a_values[lane][i] = *product->a_registers[lane][i];
      }
    }
  }
  accumulators->last_group = product->group;
  ++accumulators->num_unfinished;
  show_poison(*accumulators);
  warp.products.push_back(product);
  if (done_at_issue(AsyncWork::kWgmma)) compute_until(warp, *product);
}

void wait_for_groups(WarpState& warp, uint64_t groups_below) {
  while (!warp.products.empty() && warp.products.front()->group < groups_below) {
    const auto product = warp.products.front();
    compute_until(warp, *product);
    check_a_untouched(*product);
    warp.products.pop_front();
    warp.is_fenced = false;
  }
  std::erase_if(warp.accumulators, [&](const std::shared_ptr<Accumulators>& accumulators) {
    if (accumulators->last_group >= groups_below) return false;
    check_untouched(*accumulators);
    return true;
  });
}

// fence, commit and wait: rendezvous of the warp, then `act` once.
template <class Act>
void warp_instruction(const char* name, int argument, const Act& act) {
  int mine = argument;
  warp_collective(name, name, kFullMask, &mine, [&](void* const* lanes) {
    for (int lane = 0; lane < 32; ++lane) {
      if (*static_cast<int*>(lanes[lane]) != argument)
        fail(std::string(name) + ": the lanes of the warp give different arguments");
    }
    auto& state = this_block().state<WgmmaState>();
    state.log.record(this_thread(), {name, 0, 0, argument});
    act(state.of(this_thread()));
  });
}

void join(const Operands& operands) {
  static const char key = 0;
  Operands mine = operands;
  warp_collective(&key, operands.op->name, kFullMask, &mine, [&](void* const* lanes) { issue(mine, lanes); });
}

}  // namespace

void wgmma(const WgmmaOp& op, void* const* accumulators, uint64_t a, uint64_t b, bool accumulate) {
  join({&op, accumulators, nullptr, a, b, accumulate});
}

void wgmma(const WgmmaOp& op, void* const* accumulators, const uint32_t* const* a, uint64_t b, bool accumulate) {
  join({&op, accumulators, a, 0, b, accumulate});
}

void wgmma_fence() {
  warp_instruction("wgmma.fence", 0, [](WarpState& warp) { warp.is_fenced = true; });
}

void wgmma_commit_group() {
  warp_instruction("wgmma.commit_group", 0, [](WarpState& warp) { ++warp.num_commits; });
}

void wgmma_wait_group(int allowed) {
  warp_instruction("wgmma.wait_group", allowed, [&](WarpState& warp) {
    const auto newest = static_cast<uint64_t>(allowed);
    wait_for_groups(warp, warp.num_commits > newest ? warp.num_commits - newest : 0);
  });
}

void check_not_read_by_wgmma(Block& block, uint32_t offset, uint32_t bytes, const char* primitive) {
  const auto& warps = block.state<WgmmaState>().warps();
  for (size_t warp = 0; warp < warps.size(); ++warp) {
    for (const auto& product : warps[warp].products) {
      if (!reads(*product, static_cast<int>(warp % 4), offset, bytes)) continue;
      fail(std::string(primitive) + " to shared offset " + std::to_string(offset) + ": warp " + std::to_string(warp) +
           " has not waited for " + product->op.name + ", which reads there");
    }
  }
}

}  // namespace tokcore::simt
