// kv_compact: rows of sinks and window move down in place; where the tree has reached the pages, its tokens are
// gathered first and written to their new places. Compiled once per instruction-set level.
#include "tokcore/kv_cache/kv_compact.h"

#include "tokcore/kv_cache/pages.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

// Tokens of one head from place `first` on.
template <class T>
struct GatheredTokens {
  int64_t first = 0;
  T* numbers;       // [n, D] as the window has them
  float* prepared;  // [n, D] of tokens in codes: as quantized
  uint8_t* codes;   // [n, D]
  BFloat16* scale;  // [n, D / 16] of tokens with scales of their own
  BFloat16* zero;

  GatheredTokens(int64_t count, int64_t head_dim, Arena& arena)
      : numbers(arena.take<T>(count * head_dim)),
        prepared(arena.take<float>(count * head_dim)),
        codes(arena.take<uint8_t>(count * head_dim)),
        scale(arena.take<BFloat16>(count * head_dim / 16)),
        zero(arena.take<BFloat16>(count * head_dim / 16)) {}
};

template <class T>
class Compact {
 public:
  Compact(const KvCompactParams& params, const Threads& threads)
      : p_(params), threads_(threads), D_(params.cache.head_dim), H_(params.cache.num_heads) {}

  void run() const {
    int64_t most = 0;
    for (int64_t i = 0; i < p_.num_rows; ++i) {
      if (p_.rows[i].num_pages > 0) most = max(most, p_.rows[i].old_length - first_place(p_.rows[i]));
    }
    Arena counting;
    const Worker counted(p_.cache, most, counting);
    const ScratchPerThread scratch(threads_.count, most > 0 ? counting.used() : 0);
    for_each_item(threads_, p_.num_rows * H_, [&](int64_t item, int index) {
      const KvCompactRow& row = p_.rows[item / H_];
      const KvCacheParams cache = layer_of(p_.cache, row.layer);
      if (row.num_pages == 0) return move_rows(cache, row, item % H_);
      Arena arena(scratch[index]);
      Worker worker(p_.cache, most, arena);
      for (const PageKind kind : kPageKinds) {
        gather(cache, row, item % H_, kind, worker);
        write(cache, row, item % H_, kind, worker);
      }
    });
  }

 private:
  struct Worker {
    Worker(const KvCacheParams& cache, int64_t most, Arena& arena)
        : tokens(most, cache.head_dim, arena), open(cache, arena), row(arena.take<float>(cache.head_dim)) {}
    GatheredTokens<T> tokens;
    OpenPage open;
    float* row;  // [D]
  };

  // Of the tokens that may move, pages whole.
  int64_t first_place(const KvCompactRow& row) const {
    return min(row.prefix, p_.cache.num_sinks + row.first_page * p_.cache.page_size);
  }
  // Where the token comes from that will stand in this place.
  static int64_t source_of(const KvCompactRow& row, int64_t place) {
    return place < row.prefix ? place : row.prefix + row.nodes[place - row.prefix];
  }

  // The row of a token outside the pages.
  T* recent_row(const KvCacheParams& cache, const KvCompactRow& row, int64_t head, PageKind kind, int64_t place) const {
    const bool keys = kind == PageKind::kKeys, sink = place < cache.num_sinks;
    const int64_t slots = sink ? cache.num_sinks : cache.window_size;
    void* data = sink ? (keys ? cache.sink_k : cache.sink_v) : (keys ? cache.window_k : cache.window_v);
    return static_cast<T*>(data) + ((row.sequence * H_ + head) * slots + place % slots) * D_;
  }
  void copy(const T* from, T* to) const { __builtin_memcpy(to, from, static_cast<size_t>(D_) * sizeof(T)); }

  // Sources lie at or above their targets and are taken in ascending order, so that none is lost.
  void move_rows(const KvCacheParams& cache, const KvCompactRow& row, int64_t head) const {
    for (const PageKind kind : kPageKinds) {
      for (int64_t place = row.prefix; place < row.new_length; ++place) {
        const int64_t source = source_of(row, place);
        if (source == place) continue;
        copy(recent_row(cache, row, head, kind, source), recent_row(cache, row, head, kind, place));
      }
    }
  }

  // ---- with pages --------------------------------------------------------------------------------------------------

  static const KvPages& pages_of(const KvCacheParams& cache, KvTierName name, PageKind kind) {
    return kind == PageKind::kKeys ? cache.tiers[name].keys : cache.tiers[name].values;
  }
  static bool has_own_scales(const KvPages& pages) { return pages.coded && pages.scheme.axis == QuantAxis::kToken; }
  int64_t scale_stride() const { return D_ / 16; }

  void gather(const KvCacheParams& cache, const KvCompactRow& row, int64_t head, PageKind kind, Worker& worker) const {
    GatheredTokens<T>& tokens = worker.tokens;
    tokens.first = first_place(row);
    for (int64_t place = tokens.first; place < row.old_length; ++place) {
      if (place >= cache.num_sinks && place < row.old_start) continue;
      copy(recent_row(cache, row, head, kind, place), tokens.numbers + (place - tokens.first) * D_);
    }
    for (int64_t i = 0; i < row.num_pages; ++i) {
      const KvPages& pages = pages_of(cache, row.pages[i].tier, kind);
      const int64_t at = cache.num_sinks + (row.first_page + i) * cache.page_size - tokens.first;
      read_page<T>(cache, pages, kind, row.pages[i].page, head, worker.open);
      for (int64_t token = 0; token < cache.page_size; ++token) {
        take_from_page(cache, pages, kind, head, token, at + token, row.pages[i].page, worker);
      }
    }
  }

  void take_from_page(const KvCacheParams& cache, const KvPages& pages, PageKind kind, int64_t head, int64_t token,
                      int64_t index, int64_t page, Worker& worker) const {
    const GatheredTokens<T>& tokens = worker.tokens;
    if (!pages.coded) {
      const T* rows = reinterpret_cast<const T*>(pages.data + (page * H_ + head) * pages.head_bytes);
      return copy(rows + token * D_, tokens.numbers + index * D_);
    }
    const float* prepared = worker.open.rows + token * D_;
    __builtin_memcpy(tokens.prepared + index * D_, prepared, static_cast<size_t>(D_) * 4);
    __builtin_memcpy(worker.row, prepared, static_cast<size_t>(D_) * 4);
    restore_row(worker.row, D_, channel_scale_of(cache, kind, head), cache.rotates);
    store_row(worker.row, D_, tokens.numbers + index * D_);
    if (!has_own_scales(pages)) return;
    const int64_t groups = D_ / pages.scheme.group;
    __builtin_memcpy(tokens.codes + index * D_, worker.open.codes + token * D_, static_cast<size_t>(D_));
    for (int64_t group = 0; group < groups; ++group) {
      tokens.scale[index * scale_stride() + group] = worker.open.scale[token * groups + group];
      if (pages.zero != nullptr) tokens.zero[index * scale_stride() + group] = worker.open.zero[token * groups + group];
    }
  }

  void write(const KvCacheParams& cache, const KvCompactRow& row, int64_t head, PageKind kind, Worker& worker) const {
    const GatheredTokens<T>& tokens = worker.tokens;
    for (int64_t i = 0; i < row.num_pages; ++i) {
      const int64_t place = cache.num_sinks + (row.first_page + i) * cache.page_size;
      if (place < row.new_start && row.pages[i].is_written) write_page_from(cache, row, head, kind, i, place, worker);
    }
    for (int64_t place = tokens.first; place < row.new_length; ++place) {
      if (place >= cache.num_sinks && place < row.new_start) continue;
      const T* from = tokens.numbers + (source_of(row, place) - tokens.first) * D_;
      copy(from, recent_row(cache, row, head, kind, place));
    }
  }

  // The tier that holds the token from `place` before anything moves, or none.
  static int tier_of(const KvCacheParams& cache, const KvCompactRow& row, int64_t place) {
    if (place < cache.num_sinks || place >= row.old_start) return kNumTiers;
    return row.pages[(place - cache.num_sinks) / cache.page_size - row.first_page].tier;
  }

  void write_page_from(const KvCacheParams& cache, const KvCompactRow& row, int64_t head, PageKind kind, int64_t index,
                       int64_t first, Worker& worker) const {
    const GatheredTokens<T>& tokens = worker.tokens;
    const OpenPage& open = worker.open;
    const KvTierName tier = row.pages[index].tier;
    const KvPages& pages = pages_of(cache, tier, kind);
    if (!pages.coded) {
      T* to = reinterpret_cast<T*>(pages.data + (row.pages[index].page * H_ + head) * pages.head_bytes);
      for (int64_t i = 0; i < cache.page_size; ++i) {
        copy(tokens.numbers + (source_of(row, first + i) - tokens.first) * D_, to + i * D_);
      }
      return;
    }
    for (int64_t i = 0; i < cache.page_size; ++i) {
      const int64_t source = source_of(row, first + i), from = source - tokens.first;
      const int old_tier = tier_of(cache, row, source);
      if (old_tier != kNumTiers && pages_of(cache, static_cast<KvTierName>(old_tier), kind).coded) {
        __builtin_memcpy(open.rows + i * D_, tokens.prepared + from * D_, static_cast<size_t>(D_) * 4);
      } else {
        prepare_row(tokens.numbers + from * D_, D_, channel_scale_of(cache, kind, head), cache.rotates,
                    open.rows + i * D_);
      }
    }
    quantize_rows(open.rows, cache.page_size, D_, pages.scheme, open.codes, open.scale,
                  pages.zero == nullptr ? nullptr : open.zero, open.scratch);
    if (has_own_scales(pages)) keep_codes(cache, row, pages, tier, first, worker);
    write_codes(cache, pages, kind, row.pages[index].page, head, open);
  }

  // Tokens that stay in their tier keep codes and scales bit for bit.
  void keep_codes(const KvCacheParams& cache, const KvCompactRow& row, const KvPages& pages, KvTierName tier,
                  int64_t first, Worker& worker) const {
    const GatheredTokens<T>& tokens = worker.tokens;
    const int64_t groups = D_ / pages.scheme.group;
    for (int64_t i = 0; i < cache.page_size; ++i) {
      const int64_t source = source_of(row, first + i), from = source - tokens.first;
      if (tier_of(cache, row, source) != tier) continue;
      __builtin_memcpy(worker.open.codes + i * D_, tokens.codes + from * D_, static_cast<size_t>(D_));
      for (int64_t group = 0; group < groups; ++group) {
        worker.open.scale[i * groups + group] = tokens.scale[from * scale_stride() + group];
        if (pages.zero != nullptr) worker.open.zero[i * groups + group] = tokens.zero[from * scale_stride() + group];
      }
    }
  }

  const KvCompactParams& p_;
  const Threads& threads_;
  int64_t D_, H_;
};

}  // namespace

void kv_compact(const KvCompactParams& params, const Threads& threads) {
  with_dtype(params.cache.dtype, [&](auto element) { Compact<decltype(element)>(params, threads).run(); });
}

}  // namespace tokcore::cpu::TOKCORE_ISA
