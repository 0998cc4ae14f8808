// Pages written from tokens that lie elsewhere already: in copies of pages, whatever their precision, or in rows of
// numbers.
#pragma once

#include "kv_cache/pages_cuda.cuh"

namespace tokcore::kv_cache {

// A token's keys or values of one head, as they were before anything was written.
template <class T>
struct PageSource {
  KvTierName name;        // of the tier it lay in; kNumTiers: a row of numbers
  const KvPages* pages;   // of that tier; null: a row of numbers
  const uint8_t* data;    // the head in its page, or the row
  const BFloat16* scale;  // of the head in its page, where it is coded
  const BFloat16* zero;   // null: symmetric
  int within;             // the page; 0 of a row
  int page_size, head_dim;
  bool keys;

  TOKCORE_DEVICE bool coded() const { return pages != nullptr && pages->coded; }
  TOKCORE_DEVICE T element(int channel) const { return reinterpret_cast<const T*>(data)[within * head_dim + channel]; }
  TOKCORE_DEVICE uint32_t code(int channel) const {
    const int bits = pages->scheme.bits;
    const CodePlace at = keys ? place_in_key_page(within, channel, head_dim, bits)
                              : place_in_value_page(within, channel, page_size, bits);
    return data[at.byte] >> at.shift & top_code(bits);
  }
  TOKCORE_DEVICE int64_t scale_at(int channel) const {
    const int group = static_cast<int>(pages->scheme.group);
    return pages->scheme.axis == QuantAxis::kToken ? channel / group * page_size + within
                                                   : within / group * head_dim + channel;
  }
  // As quantized, or as it came where there are no codes.
  TOKCORE_DEVICE float number(int channel) const {
    if (!coded()) return cuda::to_float(element(channel));
    const int64_t at = scale_at(channel);
    const float offset = zero == nullptr ? 0.0f : cuda::to_float(zero[at]);
    return cuda::value_of_code(code(channel), cuda::to_float(scale[at]), offset, cuda::origin_of(pages->scheme));
  }
};

// The token's numbers into a row of them, by a warp; `buffer` holds D floats of its own.
template <class T>
TOKCORE_DEVICE void restore_numbers(const PageSource<T>& source, const cuda::RowRules& rules, float* buffer, T* numbers,
                                    int lane) {
  const int head_dim = source.head_dim;
  if (!source.coded()) {
    for (int i = lane; i < head_dim; i += 32) numbers[i] = source.element(i);
    return;
  }
  for (int i = lane; i < head_dim; i += 32) buffer[i] = source.number(i);
  cuda::restore_row(buffer, head_dim, rules, lane);
  for (int i = lane; i < head_dim; i += 32) numbers[i] = cuda::from_float<T>(buffer[i]);
  __syncwarp();
}

// Writes a head of a page of keys or values; source_of(token) gives a PageSource. Tokens that stay in a tier whose
// scales are by token keep codes and scales bit for bit. All threads of the block.
template <class T, class SourceOf>
TOKCORE_DEVICE void write_page_from(const KvCacheParams& cache, KvTierName name, bool keys, int64_t page, int64_t head,
                                    float norm, SourceOf&& source_of, unsigned char* shared) {
  const KvPages& pages = keys ? cache.tiers[name].keys : cache.tiers[name].values;
  const int page_size = static_cast<int>(cache.page_size), head_dim = static_cast<int>(cache.head_dim);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warps = static_cast<int>(blockDim.x) / 32;
  const int64_t place = page * cache.num_heads + head;
  const cuda::RowRules rules = {channel_scale_of(cache, keys, head), cache.rotates, norm};
  const cuda::PanelScratch scratch(shared, warps, head_dim);
  uint8_t* data = pages.data + place * pages.head_bytes;
  if (!pages.coded) {
    for (int token = warp; token < page_size; token += warps) {
      restore_numbers<T>(source_of(token), rules, scratch.rows + warp * head_dim,
                         reinterpret_cast<T*>(data) + token * head_dim, lane);
    }
    return;
  }
  const QuantScheme& scheme = pages.scheme;
  const auto scale_at = [&](int token, int column) {
    return place * pages.head_scales + scale_in_page(cache, scheme, token, column);
  };
  cuda::quantize_panel(
      scratch, page_size, head_dim, scheme,
      [&](int token, float* values) {
        const PageSource<T> source = source_of(token);
        if (source.coded()) {  // already divided and rotated
          __syncwarp();
          for (int i = lane; i < head_dim; i += 32) values[i] = source.number(i);
          __syncwarp();
        } else {
          cuda::prepare_row([&](int i) { return cuda::to_float(source.element(i)); }, head_dim, rules, values, lane);
        }
      },
      [&](int token, int column, const cuda::GroupScale& made) {
        const int64_t at = scale_at(token, column);
        pages.scale[at] = made.scale;
        if (pages.zero != nullptr) pages.zero[at] = made.zero;
      },
      [&](int token) { return scratch.codes + token * head_dim; },
      [&](int token) {
        const PageSource<T> source = source_of(token);
        if (scheme.axis != QuantAxis::kToken || source.name != name) return;
        const int group = static_cast<int>(scheme.group);
        for (int i = lane; i < head_dim; i += 32) {
          scratch.codes[token * head_dim + i] = static_cast<uint8_t>(source.code(i));
        }
        for (int column = lane; column < head_dim / group; column += 32) {
          const int64_t from = source.scale_at(column * group), at = scale_at(token, column);
          pages.scale[at] = source.scale[from];
          if (pages.zero != nullptr) pages.zero[at] = source.zero[from];
        }
      });
  pack_page(cache, pages, keys, scratch.codes, data);
}

}  // namespace tokcore::kv_cache
