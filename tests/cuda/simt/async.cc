#include "simt/async.h"

#include <utility>

#include "simt/scheduler.h"

namespace tokcore::simt {

void AsyncQueue::start(Asynchrony asynchrony, uint64_t seed) {
  pieces_.clear();
  asynchrony_ = asynchrony;
  random_ = Random(seed);
}

void AsyncQueue::enqueue(std::function<void()> work, std::string what) {
  if (asynchrony_ == Asynchrony::kEarly) {
    work();
    return;
  }
  pieces_.push_back({std::move(work), std::move(what), &this_thread()});
}

bool AsyncQueue::force_one() {
  if (pieces_.empty()) return false;
  run(0);
  return true;
}

void AsyncQueue::at_scheduling_point() {
  if (asynchrony_ != Asynchrony::kRandom || pieces_.empty() || random_.below(8) != 0) return;
  run(random_.below(static_cast<uint32_t>(pieces_.size())));
}

std::string AsyncQueue::describe() const {
  std::string text;
  for (const Piece& piece : pieces_) {
    text += (text.empty() ? "" : ", ") + piece.what + " of thread " + std::to_string(piece.issuer->linear);
  }
  return text;
}

void AsyncQueue::run(size_t position) {
  Piece piece = std::move(pieces_[position]);
  pieces_.erase(pieces_.begin() + static_cast<std::ptrdiff_t>(position));
  piece.issuer->block->scheduler->run_on_service_fiber(
      [](void* work) { (*static_cast<std::function<void()>*>(work))(); }, &piece.work, *piece.issuer);
}

AsyncQueue& async_queue() { return this_block().scheduler->queue(); }

bool completes_now() {
  switch (policy().async) {
    case Asynchrony::kLate:
      return false;
    case Asynchrony::kEarly:
      return true;
    case Asynchrony::kRandom:
      return this_block().scheduler->random().below(2) == 0;
  }
  return false;
}

}  // namespace tokcore::simt
