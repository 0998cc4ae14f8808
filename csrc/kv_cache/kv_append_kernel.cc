// kv_append: first the pages that leave the windows, then the new tokens into the windows. Compiled once per
// instruction-set level.
#include "tokcore/kv_cache/kv_append.h"

#include "tokcore/kv_cache/pages.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

template <class T>
class Append {
 public:
  Append(const KvAppendParams& params, const Threads& threads) : p_(params), cache_(params.cache), threads_(threads) {}

  void run() const {
    write_pages();
    write_recent();
  }

 private:
  // A token's numbers, among the new ones or still in the window.
  const T* row_of(PageKind kind, const KvAppendRow& row, int64_t head, int64_t position) const {
    const bool keys = kind == PageKind::kKeys;
    if (position >= row.old_length) {
      const int64_t token = row.token_of[position - row.old_length];
      return keys ? static_cast<const T*>(p_.k) + token * p_.stride_k_token + head * p_.stride_k_head
                  : static_cast<const T*>(p_.v) + token * p_.stride_v_token + head * p_.stride_v_head;
    }
    return window_slot(keys ? cache_.window_k : cache_.window_v, row.sequence, head, position);
  }
  T* window_slot(void* window, int64_t sequence, int64_t head, int64_t position) const {
    const int64_t slot = (sequence * cache_.num_heads + head) * cache_.window_size + position % cache_.window_size;
    return static_cast<T*>(window) + slot * cache_.head_dim;
  }

  void write_pages() const {
    int64_t most = 0;
    for (int64_t i = 0; i < p_.num_rows; ++i) {
      const KvAppendRow& row = p_.rows[i];
      most = max(most, row.pages_to_write[kHighTier] + row.pages_to_write[kLowTier]);
    }
    if (most == 0) return;
    Arena counting;
    const OpenPage counted(cache_, counting);
    const ScratchPerThread scratch(threads_.count, counting.used());
    for_each_item(threads_, p_.num_rows * most * cache_.num_heads, [&](int64_t item, int worker) {
      const int64_t head = item % cache_.num_heads, index = item / cache_.num_heads % most;
      const KvAppendRow& row = p_.rows[item / cache_.num_heads / most];
      const int64_t high = row.pages_to_write[kHighTier];
      if (index >= high + row.pages_to_write[kLowTier]) return;
      Arena arena(scratch[worker]);
      const OpenPage open(cache_, arena);
      const KvTierName name = index < high ? kHighTier : kLowTier;
      const int64_t in_tier = row.first_page[name] + (index < high ? index : index - high);
      write_page_of(row, head, cache_.tiers[name], in_tier, row.old_start + index * cache_.page_size, open);
    });
  }

  void write_page_of(const KvAppendRow& row, int64_t head, const KvTier& tier, int64_t in_tier, int64_t first,
                     const OpenPage& open) const {
    const int64_t page = tier.page_table[row.sequence * tier.table_width + in_tier];
    for (const PageKind kind : kPageKinds) {
      const KvPages& pages = kind == PageKind::kKeys ? tier.keys : tier.values;
      write_page<T>(
          cache_, pages, kind, page, head, [&](int64_t i) { return row_of(kind, row, head, first + i); }, open);
    }
    if (tier.positions == nullptr) return;
    for (int64_t i = 0; i < cache_.page_size; ++i) {
      set_position_in_page(tier, (page * cache_.num_heads + head) * cache_.page_size + i, first + i);
    }
  }

  // New tokens into sinks and window; those that went straight into pages are left out.
  void write_recent() const {
    const size_t row_bytes = static_cast<size_t>(cache_.head_dim) * sizeof(T);
    int64_t tokens = 0;
    for (int64_t i = 0; i < p_.num_rows; ++i) tokens += p_.rows[i].new_length - p_.rows[i].old_length;
    const bool is_little = 2 * tokens * cache_.num_heads * static_cast<int64_t>(row_bytes) < kBytesForThreads;
    for_each_item(is_little ? this_thread() : threads_, p_.num_rows * cache_.num_heads, [&](int64_t item, int) {
      const KvAppendRow& row = p_.rows[item / cache_.num_heads];
      const int64_t head = item % cache_.num_heads;
      const int64_t sinks = min(row.new_length, cache_.num_sinks);
      T* sink_k = static_cast<T*>(cache_.sink_k);
      T* sink_v = static_cast<T*>(cache_.sink_v);
      for (int64_t position = row.old_length; position < sinks; ++position) {
        const int64_t slot = (row.sequence * cache_.num_heads + head) * cache_.num_sinks + position;
        __builtin_memcpy(sink_k + slot * cache_.head_dim, row_of(PageKind::kKeys, row, head, position), row_bytes);
        __builtin_memcpy(sink_v + slot * cache_.head_dim, row_of(PageKind::kValues, row, head, position), row_bytes);
      }
      for (int64_t position = max(row.old_length, row.new_start); position < row.new_length; ++position) {
        T* to_k = window_slot(cache_.window_k, row.sequence, head, position);
        T* to_v = window_slot(cache_.window_v, row.sequence, head, position);
        __builtin_memcpy(to_k, row_of(PageKind::kKeys, row, head, position), row_bytes);
        __builtin_memcpy(to_v, row_of(PageKind::kValues, row, head, position), row_bytes);
      }
    });
  }

  static constexpr int64_t kBytesForThreads = 64 << 10;  // copied within the time that waking a thread takes

  const KvAppendParams& p_;
  const KvCacheParams& cache_;
  const Threads& threads_;
};

}  // namespace

void kv_append(const KvAppendParams& params, const Threads& threads) {
  with_dtype(params.cache.dtype, [&](auto element) { Append<decltype(element)>(params, threads).run(); });
}

}  // namespace tokcore::cpu::TOKCORE_ISA
