// Writing tokens into pages and reading them back, one head of one page at a time.
#pragma once

#include "tokcore/cpu/quantize.h"
#include "tokcore/cpu/scratch.h"
#include "tokcore/kv_cache/cache.h"

namespace tokcore::cpu::TOKCORE_ISA {

enum class PageKind { kKeys, kValues };
inline constexpr PageKind kPageKinds[] = {PageKind::kKeys, PageKind::kValues};

inline uint32_t load_word(const uint8_t* from) {
  uint32_t word;
  __builtin_memcpy(&word, from, 4);
  return word;
}
inline void store_word(uint32_t word, uint8_t* to) { __builtin_memcpy(to, &word, 4); }

// codes [page_size][head_dim], a byte each, to a page of keys: a word holds four channels of a token, planes above one
// another.
inline void pack_key_page(const uint8_t* codes, int64_t page_size, int64_t head_dim, int bits, uint8_t* page) {
  const int64_t plane = head_dim / codes_per_byte(bits);
  for (int64_t block = 0; block < page_size; block += 16) {
    for (int64_t channel = 0; channel < plane; channel += 4) {
      for (int64_t token = block; token < block + 16; ++token, page += 4) {
        const uint8_t* from = codes + token * head_dim + channel;
        uint32_t word = 0;
        for (int shift = 0; shift < 8; shift += bits, from += plane) word |= load_word(from) << shift;
        store_word(word, page);
      }
    }
  }
}
inline void unpack_key_page(const uint8_t* page, int64_t page_size, int64_t head_dim, int bits, uint8_t* codes) {
  const int64_t plane = head_dim / codes_per_byte(bits);
  const uint32_t mask = 0x01010101u * static_cast<uint32_t>(top_code(bits));
  for (int64_t block = 0; block < page_size; block += 16) {
    for (int64_t channel = 0; channel < plane; channel += 4) {
      for (int64_t token = block; token < block + 16; ++token, page += 4) {
        uint8_t* to = codes + token * head_dim + channel;
        for (int shift = 0; shift < 8; shift += bits, to += plane) store_word(load_word(page) >> shift & mask, to);
      }
    }
  }
}

// … and to a page of values: a word holds four tokens of a channel.
inline void pack_value_page(const uint8_t* codes, int64_t page_size, int64_t head_dim, int bits, uint8_t* page) {
  const int64_t plane = page_size / codes_per_byte(bits);
  for (int64_t block = 0; block < head_dim; block += 16) {
    for (int64_t token = 0; token < plane; token += 4) {
      uint8_t bytes[4][16] = {};
      for (int64_t i = 0; i < 4; ++i) {
        const uint8_t* from = codes + (token + i) * head_dim + block;
        for (int shift = 0; shift < 8; shift += bits, from += plane * head_dim) {
          for (int j = 0; j < 16; ++j) bytes[i][j] = static_cast<uint8_t>(bytes[i][j] | from[j] << shift);
        }
      }
      for (int j = 0; j < 16; ++j, page += 4) {
        const uint32_t low = bytes[0][j] | uint32_t{bytes[1][j]} << 8, high = bytes[2][j] | uint32_t{bytes[3][j]} << 8;
        store_word(low | high << 16, page);
      }
    }
  }
}
inline void unpack_value_page(const uint8_t* page, int64_t page_size, int64_t head_dim, int bits, uint8_t* codes) {
  const int64_t plane = page_size / codes_per_byte(bits);
  for (int64_t block = 0; block < head_dim; block += 16) {
    for (int64_t token = 0; token < plane; token += 4) {
      for (int64_t channel = block; channel < block + 16; ++channel, page += 4) {
        for (int64_t i = 0; i < 4; ++i) {
          uint8_t* to = codes + (token + i) * head_dim + channel;
          for (int shift = 0; shift < 8; shift += bits, to += plane * head_dim) {
            *to = static_cast<uint8_t>(page[i] >> shift & top_code(bits));
          }
        }
      }
    }
  }
}

// One head of a page, unpacked: codes a byte each, scales and zeros by token (or by channel) in row order.
struct OpenPage {
  float* rows;      // [page_size, D]
  uint8_t* codes;   // [page_size, D]
  BFloat16* scale;  // [page_size, D / group] or [page_size / group, D]
  BFloat16* zero;
  float* scratch;  // [4, D]

  // At least 16 rows: a cache without pages still has tokens of the window to open.
  OpenPage(const KvCacheParams& cache, Arena& arena)
      : rows(arena.take<float>(max(cache.page_size, 16) * cache.head_dim)),
        codes(arena.take<uint8_t>(cache.page_size * cache.head_dim)),
        scale(arena.take<BFloat16>(cache.page_size * cache.head_dim)),
        zero(arena.take<BFloat16>(cache.page_size * cache.head_dim)),
        scratch(arena.take<float>(4 * cache.head_dim)) {}
};

// The scales of a page lie by group, then token (axis token); quantize_rows wants token, then group.
inline void scales_to_page(const BFloat16* from, int64_t page_size, int64_t head_dim, const QuantScheme& scheme,
                           BFloat16* to) {
  const bool by_token = scheme.axis == QuantAxis::kToken;
  const int64_t groups = by_token ? head_dim / scheme.group : head_dim;
  const int64_t rows = by_token ? page_size : page_size / scheme.group;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      to[by_token ? group * rows + row : row * groups + group] = from[row * groups + group];
    }
  }
}
inline void scales_from_page(const BFloat16* from, int64_t page_size, int64_t head_dim, const QuantScheme& scheme,
                             BFloat16* to) {
  const bool by_token = scheme.axis == QuantAxis::kToken;
  const int64_t groups = by_token ? head_dim / scheme.group : head_dim;
  const int64_t rows = by_token ? page_size : page_size / scheme.group;
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t group = 0; group < groups; ++group) {
      to[row * groups + group] = from[by_token ? group * rows + row : row * groups + group];
    }
  }
}

// open.codes, scale and zero into the page.
inline void write_codes(const KvCacheParams& cache, const KvPages& pages, PageKind kind, int64_t page, int64_t head,
                        const OpenPage& open) {
  const int64_t at = page * cache.num_heads + head;
  uint8_t* data = pages.data + at * pages.head_bytes;
  if (kind == PageKind::kKeys) {
    pack_key_page(open.codes, cache.page_size, cache.head_dim, pages.scheme.bits, data);
  } else {
    pack_value_page(open.codes, cache.page_size, cache.head_dim, pages.scheme.bits, data);
  }
  const int64_t first = at * pages.head_scales;
  scales_to_page(open.scale, cache.page_size, cache.head_dim, pages.scheme, pages.scale + first);
  if (pages.zero != nullptr) {
    scales_to_page(open.zero, cache.page_size, cache.head_dim, pages.scheme, pages.zero + first);
  }
}
inline void read_codes(const KvCacheParams& cache, const KvPages& pages, PageKind kind, int64_t page, int64_t head,
                       const OpenPage& open) {
  const int64_t at = page * cache.num_heads + head;
  const uint8_t* data = pages.data + at * pages.head_bytes;
  if (kind == PageKind::kKeys) {
    unpack_key_page(data, cache.page_size, cache.head_dim, pages.scheme.bits, open.codes);
  } else {
    unpack_value_page(data, cache.page_size, cache.head_dim, pages.scheme.bits, open.codes);
  }
  const int64_t first = at * pages.head_scales;
  scales_from_page(pages.scale + first, cache.page_size, cache.head_dim, pages.scheme, open.scale);
  if (pages.zero != nullptr) {
    scales_from_page(pages.zero + first, cache.page_size, cache.head_dim, pages.scheme, open.zero);
  }
}

inline const float* channel_scale_of(const KvCacheParams& cache, PageKind kind, int64_t head) {
  const float* scale = kind == PageKind::kKeys ? cache.k_channel_scale : cache.v_channel_scale;
  return scale == nullptr ? nullptr : scale + head * cache.head_dim;
}

// Writes a page of tokens; row_of(i) points to the numbers of its i-th token.
template <class T, class RowOf>
void write_page(const KvCacheParams& cache, const KvPages& pages, PageKind kind, int64_t page, int64_t head,
                RowOf&& row_of, const OpenPage& open) {
  if (!pages.coded) {
    T* to = reinterpret_cast<T*>(pages.data + (page * cache.num_heads + head) * pages.head_bytes);
    for (int64_t i = 0; i < cache.page_size; ++i, to += cache.head_dim) {
      __builtin_memcpy(to, row_of(i), static_cast<size_t>(cache.head_dim) * sizeof(T));
    }
    return;
  }
  const float* channel_scale = channel_scale_of(cache, kind, head);
  for (int64_t i = 0; i < cache.page_size; ++i) {
    prepare_row(static_cast<const T*>(row_of(i)), cache.head_dim, channel_scale, cache.rotates,
                open.rows + i * cache.head_dim);
  }
  quantize_rows(open.rows, cache.page_size, cache.head_dim, pages.scheme, open.codes, open.scale,
                pages.zero == nullptr ? nullptr : open.zero, open.scratch);
  write_codes(cache, pages, kind, page, head, open);
}

// Reads a page as fp32 rows [page_size, D], as they were quantized: divided by the channel scale and rotated.
template <class T>
void read_page(const KvCacheParams& cache, const KvPages& pages, PageKind kind, int64_t page, int64_t head,
               const OpenPage& open) {
  if (pages.coded) {
    read_codes(cache, pages, kind, page, head, open);
    dequantize_rows(open.codes, cache.page_size, cache.head_dim, pages.scheme, open.scale,
                    pages.zero == nullptr ? nullptr : open.zero, open.rows);
  } else {
    const T* from = reinterpret_cast<const T*>(pages.data + (page * cache.num_heads + head) * pages.head_bytes);
    load_row(from, cache.page_size * cache.head_dim, open.rows);
  }
}

}  // namespace tokcore::cpu::TOKCORE_ISA
