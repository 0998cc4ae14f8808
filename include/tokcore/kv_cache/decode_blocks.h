// The cache of one sequence and head as a list of splits, and a split as a list of blocks of at most 512 tokens.
//
// A split covers a fixed range of pages of a tier, or the sinks with the window: how many there are, and what each
// holds, depends on the cache alone.
#pragma once

#include "tokcore/kv_cache/cache.h"
#include "tokcore/kv_cache/decode_sight.h"

namespace tokcore::cpu::TOKCORE_ISA {

inline constexpr int64_t kBlockTokens = 512;
inline constexpr int64_t kSplitTokens = 2048;
inline constexpr int64_t kGroupTokens = 16;  // tokens of a tile

enum SplitSource { kHighPages, kLowPages, kRecent };

struct Split {
  int64_t sequence, head;
  SplitSource source;
  int64_t first, count;  // pages
};

// A page of codes, or up to 16 tokens of numbers.
struct Segment {
  const char* k;
  const char* v;
  int64_t k_bytes, v_bytes;
  int64_t place;           // of a page: page * Hkv + head
  int32_t count;           // tokens
  int32_t first_position;  // of consecutive positions
  const KvTier* listed;    // whose positions stand in a list, or null
  int64_t slot;            // first one of the list
};

// Columns of the score matrix: segment i owns width() of them from i * width() on, its tokens first.
struct Block {
  int64_t num_segments = 0;
  int64_t width = kGroupTokens;
  bool has_gaps = false;  // some segment is shorter than its columns
  Segment segments[kBlockTokens / kGroupTokens];

  int64_t columns() const { return num_segments * width; }
  void clear(int64_t segment_width) {
    num_segments = 0;
    width = segment_width;
    has_gaps = false;
  }
  bool is_full() const { return (num_segments + 1) * width > kBlockTokens; }
};

class BlockReader {
 public:
  BlockReader(const KvCacheParams& cache, const Split& split, const Sight& sight)
      : cache_(&cache), split_(split), sight_(sight) {
    if (split.source == kRecent) {
      length_ = cache.lengths[split.sequence];
      start_ = cache.window_starts[split.sequence];
      if (sight.window != 0) start_ = max(start_, min(length_, sight.first_query - sight.window + 1));
      position_ = cache.num_sinks > 0 && length_ > 0 ? 0 : start_;
    }
  }

  // Fills the next block; false at the end. Pages that no query sees are left out.
  bool next(Block& block) { return split_.source == kRecent ? next_recent(block) : next_pages(block); }

 private:
  bool next_recent(Block& block) {
    block.clear(kGroupTokens);
    const int64_t sinks = min(length_, cache_->num_sinks);
    while (!block.is_full()) {
      if (position_ >= sinks && position_ < start_) position_ = start_;
      if (position_ >= length_) break;
      const int64_t item = split_.sequence * cache_->num_heads + split_.head;
      if (position_ < sinks) {
        const int64_t count = min(sinks - position_, kGroupTokens);
        add_rows(block, cache_->sink_k, cache_->sink_v, item * cache_->num_sinks + position_, count);
      } else {
        const int64_t slot = position_ % cache_->window_size;  // rows are consecutive up to the end of the ring
        const int64_t count = min(min(length_ - position_, cache_->window_size - slot), kGroupTokens);
        add_rows(block, cache_->window_k, cache_->window_v, item * cache_->window_size + slot, count);
      }
    }
    return block.num_segments > 0;
  }

  void add_rows(Block& block, const void* k, const void* v, int64_t row, int64_t count) {
    const int64_t bytes = cache_->head_dim * static_cast<int64_t>(size_of(cache_->dtype));
    Segment& made = block.segments[block.num_segments++];
    made = {static_cast<const char*>(k) + row * bytes,
            static_cast<const char*>(v) + row * bytes,
            count * bytes,
            count * bytes,
            0,
            static_cast<int32_t>(count),
            static_cast<int32_t>(position_),
            nullptr,
            0};
    block.has_gaps |= count < kGroupTokens;
    position_ += count;
  }

  bool next_pages(Block& block) {
    const KvTier& tier = cache_->tiers[split_.source == kHighPages ? kHighTier : kLowTier];
    const bool by_page = tier.keys.coded;
    block.clear(by_page ? cache_->page_size : kGroupTokens);
    const int64_t row_bytes = cache_->head_dim * static_cast<int64_t>(size_of(cache_->dtype));
    const int64_t groups = by_page ? 1 : cache_->page_size / kGroupTokens;
    for (; page_ < split_.count; ++page_) {
      if ((block.num_segments + groups) * block.width > kBlockTokens) break;
      const int64_t index = split_.first + page_;
      const int64_t page = tier.page_table[split_.sequence * tier.table_width + index];
      const int64_t place = page * cache_->num_heads + split_.head;
      const int64_t first = cache_->num_sinks + index * cache_->page_size;
      if (is_out_of_sight(tier, place, first)) continue;
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t token = group * kGroupTokens;
        Segment& made = block.segments[block.num_segments++];
        made.k = reinterpret_cast<const char*>(tier.keys.data) + place * tier.keys.head_bytes + token * row_bytes;
        made.v = reinterpret_cast<const char*>(tier.values.data) + place * tier.values.head_bytes + token * row_bytes;
        made.k_bytes = tier.keys.head_bytes / groups;
        made.v_bytes = tier.values.head_bytes / groups;
        made.place = place;
        made.count = static_cast<int32_t>(block.width);
        made.first_position = static_cast<int32_t>(first + token);
        made.listed = tier.positions == nullptr ? nullptr : &tier;
        made.slot = place * cache_->page_size + token;
      }
    }
    return block.num_segments > 0;
  }

  bool is_out_of_sight(const KvTier& tier, int64_t place, int64_t first) const {
    if (sight_.window == 0) return false;
    if (tier.positions == nullptr) return sight_.none_sees(first, first + cache_->page_size - 1);
    for (int64_t i = 0; i < cache_->page_size; ++i) {
      const int64_t position = position_in_page(tier, place * cache_->page_size + i);
      if (!sight_.none_sees(position, position)) return false;
    }
    return true;
  }

  const KvCacheParams* cache_;
  Split split_;
  Sight sight_;
  int64_t page_ = 0;
  int64_t length_ = 0, start_ = 0, position_ = 0;
};

}  // namespace tokcore::cpu::TOKCORE_ISA
