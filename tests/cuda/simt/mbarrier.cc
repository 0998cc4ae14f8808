#include "simt/mbarrier.h"

#include <cstring>
#include <string>
#include <unordered_map>

#include "simt/thread.h"

namespace tokcore::simt {
namespace {

constexpr uint32_t kMaxCount = (1 << 20) - 1;
constexpr int64_t kMaxTransaction = (1 << 20) - 1;

struct Barrier {
  uint32_t count;    // arrivals that complete a phase
  uint32_t pending;  // arrivals that the phase still lacks
  int64_t tx;        // bytes that the phase still lacks
  uint64_t phase;    // number of completed phases
  const Thread* initialiser;
  bool published;  // to TMA and other blocks
};

// The objects of a block by their offset in shared memory. The 8 bytes themselves hold a copy of the state, so that a
// store over them is noticed.
class Barriers : public BlockState {
 public:
  std::unordered_map<uint32_t, Barrier> at;
};

uint64_t image(const Barrier& b) {
  return uint64_t{b.count} << 44 ^ uint64_t { b.pending } << 24 ^ static_cast<uint64_t>(b.tx) << 2 ^
         (b.phase & 1) << 1 ^ 1;
}

struct Place {
  Block* block;
  uint32_t offset;
  unsigned char* bytes;
};

std::string name_of(const Place& place) {
  std::string name = "mbarrier at shared offset " + std::to_string(place.offset);
  if (place.block != &this_block()) name += " of block " + std::to_string(place.block->rank) + " of the cluster";
  return name;
}

Place find_place(uint32_t address, const char* primitive) {
  auto* bytes = static_cast<unsigned char*>(shared_pointer(address, 8, 8, primitive));
  Block* block = &this_block().blocks[shared_rank(address)];
  if (block->live_threads == 0) fail(std::string(primitive) + ": block " + std::to_string(block->rank) + " has exited");
  return {block, static_cast<uint32_t>(bytes - block->shared), bytes};
}

Barrier& find(const Place& place, const char* primitive) {
  auto& at = place.block->state<Barriers>().at;
  const auto found = at.find(place.offset);
  if (found == at.end()) fail(std::string(primitive) + ": " + name_of(place) + " is not initialised");
  Barrier& barrier = found->second;
  const uint64_t expected = image(barrier);
  if (std::memcmp(place.bytes, &expected, 8) != 0)
    fail(std::string(primitive) + ": " + name_of(place) + " was overwritten");
  if (place.block != &this_block() && !barrier.published) {
    fail(std::string(primitive) + ": the initialisation of the " + name_of(place) +
         " was not published (fence.mbarrier_init, barrier.cluster.arrive)");
  }
  return barrier;
}

void store(const Place& place, const Barrier& barrier) {
  const uint64_t bytes = image(barrier);
  std::memcpy(place.bytes, &bytes, 8);
}

void finish_phase(Barrier& barrier) {
  if (barrier.pending != 0 || barrier.tx != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
}

// pending -= arrivals, tx += bytes, in one step.
void update(uint32_t address, uint32_t arrivals, int64_t bytes, const char* primitive) {
  const Place place = find_place(address, primitive);
  Barrier& barrier = find(place, primitive);
  if (arrivals > barrier.pending) {
    fail(std::string(primitive) + ": " + std::to_string(arrivals) + " more arrivals at the " + name_of(place) +
         ", which lacks " + std::to_string(barrier.pending) + " of " + std::to_string(barrier.count) + " in phase " +
         std::to_string(barrier.phase));
  }
  barrier.tx += bytes;
  if (barrier.tx > kMaxTransaction || barrier.tx < -kMaxTransaction) {
    fail(std::string(primitive) + ": the transaction count of the " + name_of(place) +
         " leaves its range: " + std::to_string(barrier.tx));
  }
  barrier.pending -= arrivals;
  finish_phase(barrier);
  store(place, barrier);
}

bool is_complete(const Barrier& barrier, uint32_t parity) { return (barrier.phase & 1) != parity; }

void check_parity(uint32_t parity, const char* primitive) {
  if (parity > 1) fail(std::string(primitive) + ": the parity is " + std::to_string(parity) + ", not 0 or 1");
}

}  // namespace

void mbarrier_init(uint32_t address, uint32_t count) {
  const Place place = find_place(address, "mbarrier.init");
  if (place.block != &this_block()) fail("mbarrier.init: the " + name_of(place) + " is not this block's");
  if (count == 0 || count > kMaxCount)
    fail("mbarrier.init: the count is " + std::to_string(count) + ", not in [1, 2^20)");
  auto& at = place.block->state<Barriers>().at;
  if (at.contains(place.offset)) {
    fail("mbarrier.init: the " + name_of(place) + " is in use (mbarrier.inval comes first)");
  }
  const Barrier barrier{count, count, 0, 0, &this_thread(), false};
  at.emplace(place.offset, barrier);
  store(place, barrier);
}

void mbarrier_inval(uint32_t address) {
  const Place place = find_place(address, "mbarrier.inval");
  find(place, "mbarrier.inval");
  place.block->state<Barriers>().at.erase(place.offset);
  std::memset(place.bytes, 0xff, 8);
}

void publish_mbarriers() {
  for (auto& [offset, barrier] : this_block().state<Barriers>().at) {
    if (barrier.initialiser == &this_thread()) barrier.published = true;
  }
}

void mbarrier_arrive(uint32_t address, uint32_t count) { update(address, count, 0, "mbarrier.arrive"); }

void mbarrier_expect_tx(uint32_t address, uint32_t bytes) { update(address, 0, bytes, "mbarrier.expect_tx"); }

void mbarrier_arrive_expect_tx(uint32_t address, uint32_t bytes) {
  update(address, 1, bytes, "mbarrier.arrive.expect_tx");
}

void mbarrier_complete_tx(uint32_t address, uint32_t bytes) {
  update(address, 0, -int64_t{bytes}, "mbarrier.complete_tx");
}

bool mbarrier_test_wait(uint32_t address, uint32_t parity) {
  constexpr const char* kName = "mbarrier.try_wait";
  check_parity(parity, kName);
  const Place place = find_place(address, kName);
  if (is_complete(find(place, kName), parity)) return true;
  poll(kName);
  return is_complete(find(place, kName), parity);
}

void mbarrier_wait(uint32_t address, uint32_t parity) {
  constexpr const char* kName = "mbarrier.wait";
  check_parity(parity, kName);
  const Place place = find_place(address, kName);
  if (place.block != &this_block()) fail("mbarrier.wait: the " + name_of(place) + " is not this block's");
  const Barrier& barrier = find(place, kName);
  wait_until([&] { return is_complete(find(place, kName), parity); },
             [&] {
               return std::string(kName) + " for parity " + std::to_string(parity) + " of the " + name_of(place) +
                      " in phase " + std::to_string(barrier.phase) + ": " + std::to_string(barrier.pending) + " of " +
                      std::to_string(barrier.count) + " arrivals and " + std::to_string(barrier.tx) +
                      " transaction bytes pending";
             });
}

void check_mbarrier_for_tma(uint32_t address, const char* primitive) {
  const Place place = find_place(address, primitive);
  if (!find(place, primitive).published) {
    fail(std::string(primitive) + ": the initialisation of the " + name_of(place) +
         " was not published to the async proxy (fence.mbarrier_init or fence.proxy.async)");
  }
}

}  // namespace tokcore::simt
