// The block that comes next, fetched into L2 while the current one is worked on. Memory is kept busy throughout: its
// lines are spread over scores, softmax and weighted sums by the share of the time that each takes.
#pragma once

#include "tokcore/kv_cache/decode_blocks.h"
#include "tokcore/kv_cache/pages.h"

namespace tokcore::cpu::TOKCORE_ISA {

class BlockPrefetcher {
 public:
  // `next` may be null. The current block is worked on in `chunks` rounds of rows.
  BlockPrefetcher(const Block* next, int64_t chunks) : next_(next), chunks_(chunks) {
    if (next == nullptr) return;
    for (int64_t i = 0; i < next->num_segments; ++i) total_ += lines_of(2 * i) + lines_of(2 * i + 1);
  }

  void begin_chunk(int64_t chunk) { chunk_ = chunk; }

  // `done` of `total` portions of the current keys or values are worked on.
  void operator()(PageKind kind, int64_t done, int64_t total) {
    const bool keys = kind == PageKind::kKeys;
    advance(keys ? 0 : kScores + kSoftmax, keys ? kScores : kHundred - kScores - kSoftmax, min(done, total), total);
  }
  // … or of everything.
  void operator()(int64_t done, int64_t total) { advance(0, kHundred, min(done, total), total); }
  // … or of its rows of scores.
  void after_softmax(int64_t done, int64_t total) { advance(kScores, kSoftmax, done, total); }

 private:
  static constexpr int64_t kLine = 64;
  static constexpr int kStreams = 8;  // pieces fetched side by side: a hardware prefetcher follows each within its page
  static constexpr int64_t kHundred = 100, kScores = 40, kSoftmax = 20;  // percent of a block's time

  // Pieces are the keys and values of the segments in turn.
  const char* data_of(int64_t piece) const {
    const Segment& segment = next_->segments[piece / 2];
    return piece % 2 == 0 ? segment.k : segment.v;
  }
  int64_t lines_of(int64_t piece) const {
    const Segment& segment = next_->segments[piece / 2];
    return ceil_div(piece % 2 == 0 ? segment.k_bytes : segment.v_bytes, kLine);
  }

  void advance(int64_t start, int64_t share, int64_t done, int64_t total) {
    if (issued_ == total_) return;
    const int64_t wanted =
        total_ * (chunk_ * kHundred * total + start * total + share * done) / (chunks_ * kHundred * total);
    while (issued_ < wanted) {
      if (line_ == most_lines_) open_streams();
      for (int s = 0; s < kStreams; ++s) {
        if (line_ >= lines_[s]) continue;
        __builtin_prefetch(streams_[s] + line_ * kLine, 0, 2);
        ++issued_;
      }
      ++line_;
    }
  }

  void open_streams() {
    line_ = most_lines_ = 0;
    for (int s = 0; s < kStreams; ++s, ++piece_) {
      const bool present = piece_ < 2 * next_->num_segments;
      streams_[s] = present ? data_of(piece_) : nullptr;
      lines_[s] = present ? lines_of(piece_) : 0;
      most_lines_ = max(most_lines_, lines_[s]);
    }
  }

  const Block* next_;
  int64_t chunks_, chunk_ = 0;
  int64_t total_ = 0, issued_ = 0, piece_ = 0, line_ = 0, most_lines_ = 0;
  const char* streams_[kStreams] = {};
  int64_t lines_[kStreams] = {};
};

}  // namespace tokcore::cpu::TOKCORE_ISA
