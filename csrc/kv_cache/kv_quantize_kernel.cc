// kv_quantize and kv_dequantize. Compiled once per instruction-set level.
#include "tokcore/kv_cache/kv_quantize.h"

#include "tokcore/cpu/quantize.h"
#include "tokcore/cpu/scratch.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

// Tokens that are worked on at a time: one group with axis channel.
int64_t tokens_of_block(const KvCodesParams& p) {
  constexpr int64_t kTokens = 16;
  return p.scheme.axis == QuantAxis::kChannel ? p.scheme.group : kTokens;
}

struct Block {
  float* rows;     // [tokens, D]
  uint8_t* codes;  // [tokens, D]
  float* scratch;  // [4, D]

  Block(const KvCodesParams& p, Arena& arena)
      : rows(arena.take<float>(tokens_of_block(p) * p.head_dim)),
        codes(arena.take<uint8_t>(tokens_of_block(p) * p.head_dim)),
        scratch(arena.take<float>(4 * p.head_dim)) {}
};

// Calls work(block scratch, item, first token, tokens, index of the first scale, channel scales) for all blocks.
template <class Work>
void for_each_block(const KvCodesParams& p, const Threads& threads, Work&& work) {
  const int64_t block_tokens = tokens_of_block(p);
  const int64_t blocks = ceil_div(p.num_tokens, block_tokens);
  const int64_t num_scales = p.num_tokens * p.head_dim / p.scheme.group;  // of an item, either axis
  Arena counting;
  const Block counted(p, counting);
  const ScratchPerThread scratch(threads.count, counting.used());
  for_each_item(threads, p.num_items * blocks, [&](int64_t index, int worker) {
    Arena arena(scratch[worker]);
    const Block block(p, arena);
    const int64_t item = index / blocks, first = index % blocks * block_tokens;
    const float* channel_scale =
        p.channel_scale == nullptr ? nullptr : p.channel_scale + item % p.num_channel_scales * p.head_dim;
    const int64_t first_scale = item * num_scales + first * p.head_dim / p.scheme.group;
    work(block, item, first, min(p.num_tokens - first, block_tokens), first_scale, channel_scale);
  });
}

template <class T>
void quantize(const KvQuantizeParams& p, const Threads& threads) {
  const int64_t row_bytes = code_bytes(p.head_dim, p.scheme.bits);
  for_each_block(p, threads,
                 [&](const Block& block, int64_t item, int64_t first, int64_t tokens, int64_t first_scale,
                     const float* channel_scale) {
                   for (int64_t token = 0; token < tokens; ++token) {
                     const T* from =
                         static_cast<const T*>(p.x) + item * p.stride_item + (first + token) * p.stride_token;
                     prepare_row(from, p.head_dim, channel_scale, p.rotates, block.rows + token * p.head_dim);
                   }
                   quantize_rows(block.rows, tokens, p.head_dim, p.scheme, block.codes, p.scale + first_scale,
                                 p.zero == nullptr ? nullptr : p.zero + first_scale, block.scratch);
                   for (int64_t token = 0; token < tokens; ++token) {
                     uint8_t* to = p.packed + (item * p.num_tokens + first + token) * row_bytes;
                     pack_row(block.codes + token * p.head_dim, p.head_dim, p.scheme.bits, to);
                   }
                 });
}

template <class T>
void dequantize(const KvDequantizeParams& p, const Threads& threads) {
  const int64_t row_bytes = code_bytes(p.head_dim, p.scheme.bits);
  for_each_block(p, threads,
                 [&](const Block& block, int64_t item, int64_t first, int64_t tokens, int64_t first_scale,
                     const float* channel_scale) {
                   for (int64_t token = 0; token < tokens; ++token) {
                     const uint8_t* from = p.packed + (item * p.num_tokens + first + token) * row_bytes;
                     unpack_row(from, p.head_dim, p.scheme.bits, block.codes + token * p.head_dim);
                   }
                   dequantize_rows(block.codes, tokens, p.head_dim, p.scheme, p.scale + first_scale,
                                   p.zero == nullptr ? nullptr : p.zero + first_scale, block.rows);
                   for (int64_t token = 0; token < tokens; ++token) {
                     float* row = block.rows + token * p.head_dim;
                     restore_row(row, p.head_dim, channel_scale, p.rotates);
                     store_row(row, p.head_dim,
                               static_cast<T*>(p.x) + (item * p.num_tokens + first + token) * p.head_dim);
                   }
                 });
}

}  // namespace

void kv_quantize(const KvQuantizeParams& params, const Threads& threads) {
  with_dtype(params.dtype, [&](auto element) { quantize<decltype(element)>(params, threads); });
}

void kv_dequantize(const KvDequantizeParams& params, const Threads& threads) {
  with_dtype(params.dtype, [&](auto element) { dequantize<decltype(element)>(params, threads); });
}

}  // namespace tokcore::cpu::TOKCORE_ISA
