// How the next launches run: which thread goes first, when asynchronous work is done, on how many host threads.
#pragma once

#include <cstdint>

namespace tokcore::simt {

enum class Order { kInOrder, kReversed, kRandom };

// kLate: only when something waits for it. kEarly: at issue. kRandom: at a random scheduling point in between.
enum class Asynchrony { kLate, kEarly, kRandom };

struct Policy {
  Order order = Order::kInOrder;
  uint64_t seed = 0;
  Asynchrony async = Asynchrony::kLate;
  int workers = 1;  // host threads that share the clusters of a grid
};

// Read at the start of a launch; not to be changed during one.
Policy& policy();

// Seeded bits that are the same on every machine (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed = 0) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((bits() >> 32) * n >> 32); }

 private:
  uint64_t state_;
};

}  // namespace tokcore::simt
