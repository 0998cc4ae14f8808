// Writing tokens into pages, one head of one page at a time by a block.
#pragma once

#include "tokcore/cuda/quantize.cuh"
#include "tokcore/kv_cache/cache.h"

namespace tokcore::kv_cache {

TOKCORE_DEVICE void set_page_position(const KvTier& tier, int64_t slot, int64_t position) {
  if (tier.wide_positions) {
    static_cast<int32_t*>(tier.positions)[slot] = static_cast<int32_t>(position);
  } else {
    static_cast<uint16_t*>(tier.positions)[slot] = static_cast<uint16_t>(position);
  }
}
TOKCORE_DEVICE int page_position(const KvTier& tier, int64_t slot) {
  return tier.wide_positions ? static_cast<const int32_t*>(tier.positions)[slot]
                             : static_cast<const uint16_t*>(tier.positions)[slot];
}

// Shared memory of a block that writes pages: PanelScratch with all of a page's codes.
inline size_t page_scratch_bytes(int64_t warps, int64_t head_dim, int64_t page_size) {
  return static_cast<size_t>(cuda::PanelScratch::bytes(warps, head_dim, page_size));
}

// codes [page_size, D], a byte each, into a page: see place_in_key_page and place_in_value_page. A thread makes a word.
TOKCORE_DEVICE void pack_key_page(const uint8_t* codes, int page_size, int head_dim, int bits, uint8_t* page) {
  const int plane = head_dim / codes_per_byte(bits);
  for (int word = static_cast<int>(threadIdx.x); word < page_size * plane / 4; word += static_cast<int>(blockDim.x)) {
    const int token = word / (plane * 4) * 16 + word % 16, channel = word / 16 % (plane / 4) * 4;
    const uint8_t* from = codes + token * head_dim + channel;
    uint32_t made = 0;
    for (int shift = 0; shift < 8; shift += bits, from += plane) {
      made |= *reinterpret_cast<const uint32_t*>(from) << shift;
    }
    reinterpret_cast<uint32_t*>(page)[word] = made;
  }
}
TOKCORE_DEVICE void pack_value_page(const uint8_t* codes, int page_size, int head_dim, int bits, uint8_t* page) {
  const int plane = page_size / codes_per_byte(bits);
  for (int word = static_cast<int>(threadIdx.x); word < head_dim * plane / 4; word += static_cast<int>(blockDim.x)) {
    const int channel = word / (plane * 4) * 16 + word % 16, token = word / 16 % (plane / 4) * 4;
    const uint8_t* from = codes + token * head_dim + channel;
    uint32_t made = 0;
    for (int shift = 0; shift < 8; shift += bits, from += plane * head_dim) {
      for (int i = 0; i < 4; ++i) made |= static_cast<uint32_t>(from[i * head_dim]) << (8 * i + shift);
    }
    reinterpret_cast<uint32_t*>(page)[word] = made;
  }
}

// Codes into a page of keys or values; ends with a barrier.
TOKCORE_DEVICE void pack_page(const KvCacheParams& cache, const KvPages& pages, bool keys, const uint8_t* codes,
                              uint8_t* page) {
  const int page_size = static_cast<int>(cache.page_size), head_dim = static_cast<int>(cache.head_dim);
  if (keys) {
    pack_key_page(codes, page_size, head_dim, pages.scheme.bits, page);
  } else {
    pack_value_page(codes, page_size, head_dim, pages.scheme.bits, page);
  }
  __syncthreads();
}

TOKCORE_DEVICE const float* channel_scale_of(const KvCacheParams& cache, bool keys, int64_t head) {
  const float* scale = keys ? cache.k_channel_scale : cache.v_channel_scale;
  return scale == nullptr ? nullptr : scale + head * cache.head_dim;
}

// Where the scale of (row, column) of quantize_panel lies in a head of a page.
TOKCORE_DEVICE int64_t scale_in_page(const KvCacheParams& cache, const QuantScheme& scheme, int row, int column) {
  return scheme.axis == QuantAxis::kToken ? column * cache.page_size + row : row * cache.head_dim + column;
}

// Writes a head of a page of keys or values; load(token, channel) gives an element. All threads of the block; ends with
// a barrier.
template <class T, class Load>
TOKCORE_DEVICE void write_page(const KvCacheParams& cache, const KvTier& tier, bool keys, int64_t page, int64_t head,
                               float norm, Load&& load, unsigned char* shared) {
  const KvPages& pages = keys ? tier.keys : tier.values;
  const int page_size = static_cast<int>(cache.page_size), head_dim = static_cast<int>(cache.head_dim);
  const int64_t place = page * cache.num_heads + head;
  uint8_t* data = pages.data + place * pages.head_bytes;
  if (!pages.coded) {
    T* numbers = reinterpret_cast<T*>(data);
    for (int i = static_cast<int>(threadIdx.x); i < page_size * head_dim; i += static_cast<int>(blockDim.x)) {
      numbers[i] = load(i / head_dim, i % head_dim);
    }
    __syncthreads();
    return;
  }
  const cuda::PanelScratch scratch(shared, static_cast<int>(blockDim.x) / 32, head_dim);
  const cuda::RowRules rules = {channel_scale_of(cache, keys, head), cache.rotates, norm};
  const int lane = static_cast<int>(threadIdx.x) % 32;
  cuda::quantize_panel(
      scratch, page_size, head_dim, pages.scheme,
      [&](int token, float* row) {
        cuda::prepare_row([&](int channel) { return cuda::to_float(load(token, channel)); }, head_dim, rules, row,
                          lane);
      },
      [&](int row, int column, const cuda::GroupScale& made) {
        const int64_t at = place * pages.head_scales + scale_in_page(cache, pages.scheme, row, column);
        pages.scale[at] = made.scale;
        if (pages.zero != nullptr) pages.zero[at] = made.zero;
      },
      [&](int token) { return scratch.codes + token * head_dim; }, [](int) {});
  pack_page(cache, pages, keys, scratch.codes, data);
}

}  // namespace tokcore::kv_cache
