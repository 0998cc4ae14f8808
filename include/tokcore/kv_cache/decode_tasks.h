// The work of decode_attention: which rows attend which part of the cache, and which sequences do so together.
//
// A sequence's cache is cut into parts: runs of pages of a tier, and its sinks with its window. How it is cut depends
// on the sequence alone. Where the page tables of several sequences begin with the same pages, their equal parts become
// one task, which reads the pages once for the rows of all of them. Every row computes what it would compute alone.
#pragma once

#include "tokcore/cpu/scratch.h"
#include "tokcore/kv_cache/decode_attention.h"
#include "tokcore/kv_cache/decode_blocks.h"

namespace tokcore::cpu::TOKCORE_ISA {

// A part of a sequence, for every head.
struct Part {
  int64_t sequence;
  SplitSource source;
  int64_t first, count;  // pages
  int64_t next;          // the same pages in another sequence, or -1
  bool follows;          // is the next of another part
};

struct Task {
  int64_t head, part, num_members;  // the part, its next one, …
};

class DecodeTasks {
 public:
  static constexpr int64_t kSharedRows = 128;  // of several sequences, at most, in one task

  explicit DecodeTasks(const DecodeAttentionParams& params)
      : p_(params), cache_(params.cache), group_(params.num_q_heads / params.cache.num_heads) {
    for (int64_t b = 0; b < cache_.num_sequences; ++b) num_parts_ += parts_of(b);
  }

  int64_t num_parts() const { return num_parts_; }
  int64_t num_tasks() const { return num_tasks_; }
  const Part& part(int64_t index) const { return parts_[index]; }
  const Task& task(int64_t index) const { return tasks_[index]; }
  int64_t first_part(int64_t b) const { return first_[b]; }
  int64_t queries_of(int64_t b) const { return p_.trees.counts == nullptr ? p_.num_queries : p_.trees.counts[b]; }
  int64_t rows_of(int64_t b) const { return queries_of(b) * group_; }
  int64_t most_rows() const {
    const int64_t alone = p_.num_queries * group_;
    return max(alone, min(cache_.num_sequences * alone, kSharedRows));
  }
  Split split_of(const Task& task) const {
    const Part& leader = parts_[task.part];
    return {leader.sequence, task.head, leader.source, leader.first, leader.count};
  }
  Sight sight_of(int64_t b) const {
    const int64_t length = cache_.lengths[b], M = p_.num_queries;
    Sight sight = {length - queries_of(b), length - 1, p_.window, cache_.num_sinks, nullptr, nullptr, p_.trees.words};
    if (p_.trees.ancestors != nullptr) {
      sight.ancestors = p_.trees.ancestors + b * M * p_.trees.words;
      sight.depths = p_.trees.depths + b * M;
    }
    return sight;
  }

  void plan(Arena& arena) {
    parts_ = arena.take<Part>(num_parts_);
    tasks_ = arena.take<Task>(num_parts_ * cache_.num_heads);
    first_ = arena.take<int64_t>(cache_.num_sequences + 1);
  }

  void list() {
    list_parts();
    if (p_.window == 0) {  // with a window, far pages are left out, of each sequence others
      for (int64_t b = 1; b < cache_.num_sequences; ++b) {
        for (const KvTierName name : kTiers) share_pages(name, b);
      }
    }
    list_tasks();
  }

 private:
  int64_t pages_of_part() const { return kSplitTokens / cache_.page_size; }
  int64_t pages_of(KvTierName name, int64_t b) const {
    return cache_.tiers[name].page_counts == nullptr ? 0 : cache_.tiers[name].page_counts[b];
  }
  int64_t parts_of(KvTierName name, int64_t b) const {
    return pages_of(name, b) > 0 ? ceil_div(pages_of(name, b), pages_of_part()) : 0;
  }
  int64_t parts_of(int64_t b) const {
    if (queries_of(b) == 0) return 0;
    return parts_of(kHighTier, b) + parts_of(kLowTier, b) + 1;  // sinks and window
  }

  void list_parts() {
    int64_t made = 0;
    for (int64_t b = 0; b < cache_.num_sequences; ++b) {
      first_[b] = made;
      if (queries_of(b) == 0) continue;
      for (const KvTierName name : kTiers) {
        const SplitSource source = name == kHighTier ? kHighPages : kLowPages;
        const int64_t count = pages_of(name, b);
        for (int64_t first = 0; first < count; first += pages_of_part()) {
          parts_[made++] = {b, source, first, min(count - first, pages_of_part()), -1, false};
        }
      }
      parts_[made++] = {b, kRecent, 0, 0, -1, false};
    }
    first_[cache_.num_sequences] = made;
  }

  // Joins the parts of sequence b to those of the earlier sequence that has most first pages of the tier in common.
  void share_pages(KvTierName name, int64_t b) {
    int64_t most = 0, other = -1;
    for (int64_t a = 0; a < b; ++a) {
      if (queries_of(a) == 0) continue;
      const int64_t common = common_pages(name, a, b);
      if (common > most) {
        most = common;
        other = a;
      }
    }
    for (int64_t i = 0; i < parts_of(name, b) && queries_of(b) > 0; ++i) {
      Part& mine = parts_[first_of(name, b) + i];
      if (other < 0 || i >= parts_of(name, other) || mine.first + mine.count > most) return;
      Part* theirs = &parts_[first_of(name, other) + i];
      if (theirs->count != mine.count || !is_before_queries(name, mine) || !is_before_queries(name, *theirs)) return;
      while (theirs->next >= 0) theirs = &parts_[theirs->next];
      theirs->next = first_of(name, b) + i;
      mine.follows = true;
    }
  }
  int64_t first_of(KvTierName name, int64_t b) const {
    return first_[b] + (name == kHighTier ? 0 : parts_of(kHighTier, b));
  }
  int64_t common_pages(KvTierName name, int64_t a, int64_t b) const {
    const KvTier& tier = cache_.tiers[name];
    const int64_t most = min(pages_of(name, a), pages_of(name, b));
    int64_t same = 0;
    while (same < most &&
           tier.page_table[a * tier.table_width + same] == tier.page_table[b * tier.table_width + same]) {
      ++same;
    }
    return same;
  }
  bool is_before_queries(KvTierName name, const Part& part) const {
    const bool listed = cache_.tiers[name].positions != nullptr;
    const int64_t end =
        listed ? cache_.window_starts[part.sequence] : cache_.num_sinks + (part.first + part.count) * cache_.page_size;
    return end - 1 <= cache_.lengths[part.sequence] - queries_of(part.sequence);
  }

  void list_tasks() {
    const int64_t most = most_rows();
    for (int64_t b = 0; b < cache_.num_sequences; ++b) {
      for (int64_t head = 0; head < cache_.num_heads; ++head) {
        for (int64_t i = first_[b]; i < first_[b + 1]; ++i) {
          if (parts_[i].follows) continue;
          Task task = {head, i, 0};
          int64_t rows = 0;
          for (int64_t member = i; member >= 0; member = parts_[member].next) {
            const int64_t more = rows_of(parts_[member].sequence);
            if (rows + more > most) {
              tasks_[num_tasks_++] = task;
              task = {head, member, 0};
              rows = 0;
            }
            rows += more;
            ++task.num_members;
          }
          tasks_[num_tasks_++] = task;
        }
      }
    }
  }

  const DecodeAttentionParams& p_;
  const KvCacheParams& cache_;
  int64_t group_;
  int64_t num_parts_ = 0, num_tasks_ = 0;
  Part* parts_ = nullptr;     // [num_parts]
  Task* tasks_ = nullptr;     // [num_tasks], at most num_parts * Hkv
  int64_t* first_ = nullptr;  // [B + 1]
};

}  // namespace tokcore::cpu::TOKCORE_ISA
