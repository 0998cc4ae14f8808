// kv_retier: a head of a sequence at a time is opened into scratch, its tokens are ranked, and its pages are written
// anew. Compiled once per instruction-set level.
#include "tokcore/kv_cache/kv_retier.h"

#include "tokcore/cpu/topk.h"
#include "tokcore/kv_cache/pages.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

// The k-th greatest of distinct keys, 1 <= k <= count; reorders them.
RankKey kth_greatest(RankKey* keys, int64_t count, int64_t k) {
  int64_t first = 0, last = count - 1;
  const int64_t wanted = k - 1;
  while (first < last) {
    const RankKey pivot = keys[first + (last - first) / 2];
    int64_t i = first, j = last;
    while (i <= j) {
      while (keys[i] > pivot) ++i;
      while (keys[j] < pivot) --j;
      if (i > j) break;
      const RankKey swapped = keys[i];
      keys[i++] = keys[j];
      keys[j--] = swapped;
    }
    if (wanted <= j) {
      last = j;
    } else if (wanted >= i) {
      first = i;
    } else {
      return keys[wanted];
    }
  }
  return keys[first];
}

// The tokens of one head in one tier, opened: codes with their scales as they are, and the numbers they stand for.
struct OpenTokens {
  float* rows;      // [n, D] as quantized, or as they came in pages without codes
  uint8_t* codes;   // [n, D]
  BFloat16* scale;  // [n, groups] with axis token
  BFloat16* zero;

  OpenTokens(int64_t tokens, int64_t head_dim, Arena& arena)
      : rows(arena.take<float>(tokens * head_dim)),
        codes(arena.take<uint8_t>(tokens * head_dim)),
        scale(arena.take<BFloat16>(tokens * head_dim / 16)),
        zero(arena.take<BFloat16>(tokens * head_dim / 16)) {}
};

template <class T>
class Retier {
 public:
  Retier(const KvRetierParams& params, const Threads& threads)
      : p_(params), cache_(params.cache), threads_(threads), D_(params.cache.head_dim) {}

  void run() {
    for (int64_t b = 0; b < cache_.num_sequences; ++b) most_ = max(most_, num_pages(b) * cache_.page_size);
    if (most_ == 0) return;
    Arena counting;
    const Worker counted(*this, counting);
    const ScratchPerThread scratch(threads_.count, counting.used());
    for_each_item(threads_, cache_.num_sequences * cache_.num_heads, [&](int64_t item, int index) {
      Arena arena(scratch[index]);
      const Worker worker(*this, arena);
      sort_head(worker, item / cache_.num_heads, item % cache_.num_heads);
    });
    for (int64_t b = 0; b < cache_.num_sequences; ++b) {
      const int64_t pages = num_pages(b);
      cache_.tiers[kHighTier].page_counts[b] = p_.high_pages[b];
      cache_.tiers[kLowTier].page_counts[b] = static_cast<int32_t>(pages - p_.high_pages[b]);
    }
  }

 private:
  struct Worker {
    Worker(const Retier& retier, Arena& arena)
        : open(retier.cache_, arena),
          tokens(retier.most_, retier.D_, arena),
          sources(arena.take<int32_t>(retier.most_)),
          keys(arena.take<RankKey>(retier.most_)),
          ranked(arena.take<RankKey>(retier.most_)),
          order(arena.take<int32_t>(retier.most_)) {}
    OpenPage open;
    OpenTokens tokens;
    int32_t* sources;  // [n] by position: which token it is, those of the high tier first
    RankKey* keys;     // [n] by position
    RankKey* ranked;
    int32_t* order;  // [n] positions, those of the new high tier first
  };

  int64_t num_pages(int64_t b) const {
    return int64_t{cache_.tiers[kHighTier].page_counts[b]} + cache_.tiers[kLowTier].page_counts[b];
  }
  int64_t page_of(const KvTier& tier, int64_t b, int64_t index) const {
    return tier.page_table[b * tier.table_width + index];
  }

  void sort_head(const Worker& worker, int64_t b, int64_t head) const {
    const int64_t count = num_pages(b) * cache_.page_size;
    const int64_t old_high = int64_t{cache_.tiers[kHighTier].page_counts[b]} * cache_.page_size;
    const int64_t new_high = int64_t{p_.high_pages[b]} * cache_.page_size;
    if (count == 0) return;
    rank(worker, b, head, count, new_high);
    for (const PageKind kind : kPageKinds) {
      open_tokens(worker, b, head, kind);
      for (const KvTierName name : kTiers) {
        const int64_t first = name == kHighTier ? 0 : new_high;
        const int64_t end = name == kHighTier ? new_high : count;
        for (int64_t token = first; token < end; token += cache_.page_size) {
          const int64_t page = page_of(cache_.tiers[name], b, (token - first) / cache_.page_size);
          write(worker, name, kind, page, head, worker.order + token, old_high);
        }
      }
    }
    write_positions(worker, b, head, count, new_high);
  }

  // Pages hold the positions from the sinks on, each once.
  void rank(const Worker& worker, int64_t b, int64_t head, int64_t count, int64_t new_high) const {
    int64_t token = 0;
    for (const KvTierName name : kTiers) {
      const KvTier& tier = cache_.tiers[name];
      for (int64_t i = 0; i < tier.page_counts[b]; ++i) {
        const int64_t first = (page_of(tier, b, i) * cache_.num_heads + head) * cache_.page_size;
        for (int64_t slot = first; slot < first + cache_.page_size; ++slot) {
          worker.sources[position_in_page(tier, slot) - cache_.num_sinks] = static_cast<int32_t>(token++);
        }
      }
    }
    const float* scores = p_.scores + b * p_.stride_scores_sequence + head * p_.stride_scores_head + cache_.num_sinks;
    for (int64_t i = 0; i < count; ++i)
      worker.keys[i] = worker.ranked[i] = rank_key(scores[i], static_cast<uint32_t>(i));
    const RankKey least = new_high > 0 ? kth_greatest(worker.ranked, count, new_high) : ~RankKey{0};
    int32_t* high = worker.order;
    int32_t* low = worker.order + new_high;
    for (int64_t i = 0; i < count; ++i) {
      const bool chosen = new_high > 0 && worker.keys[i] >= least;
      *(chosen ? high++ : low++) = static_cast<int32_t>(i);
    }
  }

  void open_tokens(const Worker& worker, int64_t b, int64_t head, PageKind kind) const {
    int64_t token = 0;
    for (const KvTierName name : kTiers) {
      const KvTier& tier = cache_.tiers[name];
      const KvPages& pages = kind == PageKind::kKeys ? tier.keys : tier.values;
      for (int64_t i = 0; i < tier.page_counts[b]; ++i, token += cache_.page_size) {
        read_page<T>(cache_, pages, kind, page_of(tier, b, i), head, worker.open);
        const size_t numbers = static_cast<size_t>(cache_.page_size * D_);
        __builtin_memcpy(worker.tokens.rows + token * D_, worker.open.rows, numbers * 4);
        if (!pages.coded || pages.scheme.axis != QuantAxis::kToken) continue;
        __builtin_memcpy(worker.tokens.codes + token * D_, worker.open.codes, numbers);
        const int64_t groups = D_ / pages.scheme.group;
        copy_scales(worker.open.scale, cache_.page_size * groups, worker.tokens.scale + token * scale_stride(), groups);
        if (pages.zero != nullptr) {
          copy_scales(worker.open.zero, cache_.page_size * groups, worker.tokens.zero + token * scale_stride(), groups);
        }
      }
    }
  }
  int64_t scale_stride() const { return D_ / 16; }
  // Dense rows of `groups` scales to rows of D / 16.
  void copy_scales(const BFloat16* from, int64_t count, BFloat16* to, int64_t groups) const {
    for (int64_t i = 0; i < count; ++i) to[i / groups * scale_stride() + i % groups] = from[i];
  }

  // A page of the tier from page_size positions.
  void write(const Worker& worker, KvTierName name, PageKind kind, int64_t page, int64_t head, const int32_t* positions,
             int64_t old_high) const {
    const KvTier& tier = cache_.tiers[name];
    const KvPages& pages = kind == PageKind::kKeys ? tier.keys : tier.values;
    const OpenPage& open = worker.open;
    for (int64_t i = 0; i < cache_.page_size; ++i) {
      const int64_t source = worker.sources[positions[i]];
      const KvTier& from = cache_.tiers[source < old_high ? kHighTier : kLowTier];
      const bool was_coded = (kind == PageKind::kKeys ? from.keys : from.values).coded;
      float* row = open.rows + i * D_;
      __builtin_memcpy(row, worker.tokens.rows + source * D_, static_cast<size_t>(D_) * 4);
      if (was_coded == pages.coded) continue;
      const float* channel_scale = channel_scale_of(cache_, kind, head);
      if (was_coded) {
        restore_row(row, D_, channel_scale, cache_.rotates);
      } else {
        prepare_row(worker.tokens.rows + source * D_, D_, channel_scale, cache_.rotates, row);
      }
    }
    if (!pages.coded) {
      T* to = reinterpret_cast<T*>(pages.data + (page * cache_.num_heads + head) * pages.head_bytes);
      return store_row(open.rows, cache_.page_size * D_, to);
    }
    quantize_rows(open.rows, cache_.page_size, D_, pages.scheme, open.codes, open.scale,
                  pages.zero == nullptr ? nullptr : open.zero, open.scratch);
    if (pages.scheme.axis == QuantAxis::kToken) keep_codes(worker, name, pages, positions, old_high);
    write_codes(cache_, pages, kind, page, head, open);
  }

  // Tokens that stay in their tier keep codes and scales bit for bit.
  void keep_codes(const Worker& worker, KvTierName name, const KvPages& pages, const int32_t* positions,
                  int64_t old_high) const {
    const int64_t groups = D_ / pages.scheme.group;
    for (int64_t i = 0; i < cache_.page_size; ++i) {
      const int64_t source = worker.sources[positions[i]];
      if ((source < old_high) != (name == kHighTier)) continue;
      __builtin_memcpy(worker.open.codes + i * D_, worker.tokens.codes + source * D_, static_cast<size_t>(D_));
      for (int64_t group = 0; group < groups; ++group) {
        worker.open.scale[i * groups + group] = worker.tokens.scale[source * scale_stride() + group];
        if (pages.zero == nullptr) continue;
        worker.open.zero[i * groups + group] = worker.tokens.zero[source * scale_stride() + group];
      }
    }
  }

  void write_positions(const Worker& worker, int64_t b, int64_t head, int64_t count, int64_t new_high) const {
    for (int64_t token = 0; token < count; ++token) {
      const bool high = token < new_high;
      const KvTier& tier = cache_.tiers[high ? kHighTier : kLowTier];
      const int64_t within = high ? token : token - new_high;
      const int64_t page = page_of(tier, b, within / cache_.page_size);
      const int64_t slot = (page * cache_.num_heads + head) * cache_.page_size + within % cache_.page_size;
      set_position_in_page(tier, slot, worker.order[token] + cache_.num_sinks);
    }
  }

  const KvRetierParams& p_;
  const KvCacheParams& cache_;
  const Threads& threads_;
  int64_t D_;
  int64_t most_ = 0;  // tokens in pages of one sequence
};

}  // namespace

void kv_retier(const KvRetierParams& params, const Threads& threads) {
  with_dtype(params.cache.dtype, [&](auto element) { Retier<decltype(element)>(params, threads).run(); });
}

}  // namespace tokcore::cpu::TOKCORE_ISA
