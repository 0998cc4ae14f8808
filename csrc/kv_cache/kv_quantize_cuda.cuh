// kv_quantize and kv_dequantize: a warp a row, a block a group of tokens where these share scales.
// Included once by a .cu file, and once by the tests for the execution on the CPU.
#pragma once

#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/quantize.cuh"
#include "tokcore/kv_cache/kv_quantize_cuda.h"

namespace tokcore::kv_cache {

// Warps of a block, so that rows of D channels and what goes with them fit into 48 KB, or one row into twice as much.
inline unsigned warps_of_rows(int64_t head_dim) {
  const int64_t most = int64_t{40} * 1024 / (head_dim * 5) - 2;
  return static_cast<unsigned>(max(1, min(8, most)));
}

template <class Params>
struct CodesWork {
  Params p;
  float norm;            // rotation_norm(D)
  int64_t panel_tokens;  // of a block
  int64_t panels;        // of an item
};

template <class Params>
CodesWork<Params> work_of(const Params& p, unsigned warps, bool by_group) {
  const int64_t tokens = by_group && p.scheme.axis == QuantAxis::kChannel ? p.scheme.group : int64_t{warps};
  return {p, cuda::rotation_norm(p.head_dim), tokens, ceil_div(p.num_tokens, tokens)};
}

TOKCORE_DEVICE cuda::RowRules rules_of(const KvCodesParams& p, int64_t item, float norm) {
  const float* scale = p.channel_scale;
  return {scale == nullptr ? nullptr : scale + item % p.num_channel_scales * p.head_dim, p.rotates, norm};
}

// Grid: a block for each panel of each item. Shared memory: PanelScratch with a row of codes a warp.
template <class T>
__global__ void kv_quantize_kernel(const CodesWork<KvQuantizeParams> work) {
  TOKCORE_SHARED_MEMORY(shared);
  const KvQuantizeParams& p = work.p;
  const int head_dim = static_cast<int>(p.head_dim), warps = static_cast<int>(blockDim.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t item = blockIdx.x / work.panels, first = blockIdx.x % work.panels * work.panel_tokens;
  const int tokens = static_cast<int>(min(p.num_tokens - first, work.panel_tokens));
  const cuda::PanelScratch scratch(shared, warps, head_dim);
  uint8_t* codes = scratch.codes + warp * head_dim;

  const T* x = static_cast<const T*>(p.x) + item * p.stride_item + first * p.stride_token;
  const int64_t groups = p.scheme.axis == QuantAxis::kToken ? head_dim / p.scheme.group : head_dim;
  const int64_t first_scale = item * (p.num_tokens * p.head_dim / p.scheme.group) + first * head_dim / p.scheme.group;
  const int64_t row_bytes = code_bytes(p.head_dim, p.scheme.bits);
  uint8_t* packed = p.packed + (item * p.num_tokens + first) * row_bytes;
  const cuda::RowRules rules = rules_of(p, item, work.norm);
  cuda::quantize_panel(
      scratch, tokens, head_dim, p.scheme,
      [&](int token, float* row) {
        const T* from = x + token * p.stride_token;
        cuda::prepare_row([&](int channel) { return cuda::to_float(from[channel]); }, head_dim, rules, row, lane);
      },
      [&](int row, int column, const cuda::GroupScale& made) {
        const int64_t at = first_scale + row * groups + column;
        p.scale[at] = made.scale;
        if (p.zero != nullptr) p.zero[at] = made.zero;
      },
      [&](int) { return codes; },
      [&](int token) {
        cuda::pack_row(codes, head_dim, p.scheme.bits, packed + token * row_bytes, lane);
        __syncwarp();
      });
}

// Grid: a block for as many rows as it has warps. Shared memory: a row of fp32 numbers a warp.
template <class T>
__global__ void kv_dequantize_kernel(const CodesWork<KvDequantizeParams> work) {
  TOKCORE_SHARED_MEMORY(shared);
  const KvDequantizeParams& p = work.p;
  const int head_dim = static_cast<int>(p.head_dim), group = static_cast<int>(p.scheme.group);
  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t item = blockIdx.x / work.panels, token = blockIdx.x % work.panels * work.panel_tokens + warp;
  if (token >= p.num_tokens) return;
  float* row = reinterpret_cast<float*>(shared) + warp * head_dim;

  const bool by_token = p.scheme.axis == QuantAxis::kToken;
  const uint8_t* packed = p.packed + (item * p.num_tokens + token) * code_bytes(p.head_dim, p.scheme.bits);
  const int64_t first_scale =
      item * (p.num_tokens * p.head_dim / group) + (by_token ? token * (head_dim / group) : token / group * head_dim);
  for (int i = lane; i < head_dim; i += 32) {
    const CodePlace place = place_in_row(i, head_dim, p.scheme.bits);
    const uint32_t code = packed[place.byte] >> place.shift & top_code(p.scheme.bits);
    const int64_t at = first_scale + (by_token ? i / group : i);
    const float zero = p.zero == nullptr ? 0.0f : cuda::to_float(p.zero[at]);
    row[i] = cuda::value_of_code(code, cuda::to_float(p.scale[at]), zero, cuda::origin_of(p.scheme));
  }
  cuda::restore_row(row, head_dim, rules_of(p, item, work.norm), lane);
  T* x = static_cast<T*>(p.x) + (item * p.num_tokens + token) * p.head_dim;
  for (int i = lane; i < head_dim; i += 32) x[i] = cuda::from_float<T>(row[i]);
}

}  // namespace tokcore::kv_cache

namespace tokcore {

void run_kv_quantize_cuda(const KvQuantizeParams& params, cuda::Stream stream) {
  using namespace kv_cache;
  const unsigned warps = warps_of_rows(params.head_dim);
  const auto work = work_of(params, warps, true);
  cuda::LaunchConfig config =
      cuda::launch_over(params.num_items * work.panels, 1, warps * 32, stream, "kv_quantize_kernel");
  config.shared_bytes = static_cast<size_t>(cuda::PanelScratch::bytes(warps, params.head_dim, warps));
  with_dtype(params.dtype, [&](auto x) { cuda::launch<kv_quantize_kernel<decltype(x)>>(config, work); });
}

void run_kv_dequantize_cuda(const KvDequantizeParams& params, cuda::Stream stream) {
  using namespace kv_cache;
  const unsigned warps = warps_of_rows(params.head_dim);
  const auto work = work_of(params, warps, false);
  cuda::LaunchConfig config =
      cuda::launch_over(params.num_items * work.panels, 1, warps * 32, stream, "kv_dequantize_kernel");
  config.shared_bytes = static_cast<size_t>(warps * params.head_dim * 4);
  with_dtype(params.dtype, [&](auto x) { cuda::launch<kv_dequantize_kernel<decltype(x)>>(config, work); });
}

}  // namespace tokcore
