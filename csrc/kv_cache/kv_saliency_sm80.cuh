// kv_saliency from compute capability 8.0 on: tiles of logits by the mainloop of gemm_sm80.cuh, first for the lse of
// every row, then for the reductions of every column. Rows of whole 16 bytes come by cp.async, others element by
// element.
#pragma once

#include "kv_cache/kv_saliency_work_cuda.h"
#include "tokcore/cuda/gemm_sm80.cuh"
#include "tokcore/cuda/launch_over.h"
#include "tokcore/cuda/online_softmax.cuh"
#include "tokcore/cuda/ptx.h"
#include "tokcore/cuda/reduce.cuh"

namespace tokcore::kv_cache {

template <class T>
using SaliencyGemm = cuda::GemmSm80<T, cuda::Major::kK, cuda::Major::kK>;

// The operands of one item.
template <class T, bool kAligned>
struct SaliencyOperands {
  using Gemm = SaliencyGemm<T>;
  const SaliencyWork& work;
  int64_t b, head;

  TOKCORE_DEVICE SaliencyOperands(const SaliencyWork& work_, int64_t item)
      : work(work_), b(item / work_.p.num_heads), head(item % work_.p.num_heads) {}
  TOKCORE_DEVICE int k_blocks() const {
    return (static_cast<int>(work.p.head_dim) + Gemm::kBlockK - 1) / Gemm::kBlockK;
  }
  TOKCORE_DEVICE void load_rows(unsigned char* shared, int first, int k_block) const {
    const KvSaliencyParams& p = work.p;
    const T* q = static_cast<const T*>(p.q) + b * p.stride_q_sequence + head * work.group * p.stride_q_head;
    cuda::fill_tile_by_row<typename Gemm::TileA, Gemm::kThreads, kAligned>(
        shared, threadIdx.x, q, k_block * Gemm::kBlockK, static_cast<int>(p.head_dim), [&](int i) -> int64_t {
          const int row = first + i;
          return row < work.rows ? row / work.group * p.stride_q_probe + row % work.group * p.stride_q_head : -1;
        });
  }
  TOKCORE_DEVICE void load_tokens(unsigned char* shared, int64_t first, int k_block) const {
    const KvSaliencyParams& p = work.p;
    const T* k = static_cast<const T*>(p.k) + b * p.stride_k_sequence + head * p.stride_k_head;
    cuda::fill_tile_by_row<typename Gemm::TileB, Gemm::kThreads, kAligned>(
        shared, threadIdx.x, k, k_block * Gemm::kBlockK, static_cast<int>(p.head_dim), [&](int i) -> int64_t {
          const int64_t token = first + i;
          return token < p.num_tokens ? token * p.stride_k_token : -1;
        });
  }
  // The logit of a product with a token that the row sees, else -inf.
  TOKCORE_DEVICE float logit(float product, const SaliencyRow& row, int64_t item, int64_t token) const {
    if (token > row.last) return __uint_as_float(0xff800000u);
    const float noise = work.noise == nullptr ? 0.0f : work.noise[item * work.p.num_tokens + token];
    return (product * work.p.scale + noise) * (1.0f / work.p.temperature);
  }
};

// Grid: a block for each split of tokens of each block of rows of each item. Shared memory: the mainloop's, and the
// states [warps across columns][kBlockM].
template <class T, bool kAligned>
__global__ void __launch_bounds__(SaliencyGemm<T>::kThreads)
    kv_saliency_lse_sm80_kernel(const __grid_constant__ SaliencyWork work) {
  TOKCORE_SHARED_MEMORY(shared);
  using Gemm = SaliencyGemm<T>;
  using Fragment = typename Gemm::Fragment;
  static_assert(Gemm::kWarpsN <= kSaliencyParts);
  const int row_blocks = (work.rows + Gemm::kBlockM - 1) / Gemm::kBlockM;
  const int first_row = static_cast<int>(blockIdx.x % row_blocks) * Gemm::kBlockM;
  const int split = static_cast<int>(blockIdx.x / row_blocks % work.num_splits);
  const int64_t item = blockIdx.x / row_blocks / work.num_splits;
  const SaliencyOperands<T, kAligned> operands(work, item);
  const SaliencyRow* rows = work.row_data + item * work.rows;
  const int lane = Gemm::lane(), part = Gemm::column() / Fragment::kColumns;
  cuda::SoftmaxState* states =
      reinterpret_cast<cuda::SoftmaxState*>(shared + Gemm::kSharedBytes) + part * Gemm::kBlockM + Gemm::row();
  for (int slot = 0; slot < Fragment::kSlots; ++slot) {
    if (lane % 4 == 0) states[Fragment::row_of(slot, lane)] = cuda::SoftmaxState();
  }
  __syncwarp();

  const int64_t begin = split * kSaliencySplitTokens;
  const int64_t end = min(begin + kSaliencySplitTokens, work.p.num_tokens);
  const int num_tiles = static_cast<int>((end - begin + Gemm::kBlockN - 1) / Gemm::kBlockN);
  Gemm gemm(shared);
  gemm.run(
      num_tiles, operands.k_blocks(),
      [&](unsigned char* to, int, int k_block) { operands.load_rows(to, first_row, k_block); },
      [&](unsigned char* to, int tile, int k_block) {
        operands.load_tokens(to, begin + tile * Gemm::kBlockN, k_block);
      },
      [](Fragment& fragment, int) { fragment.clear(); },
      [&](Fragment& fragment, int tile) {
        const int64_t first = begin + tile * Gemm::kBlockN + Gemm::column();
#pragma unroll
        for (int slot = 0; slot < Fragment::kSlots; ++slot) {
          const int row = first_row + Gemm::row() + Fragment::row_of(slot, lane);
          SaliencyRow data = {0.0f, 0.0f, -1, -1};
          if (row < work.rows) data = rows[row];
          float greatest = -cuda::kFarthest;
#pragma unroll
          for (int group = 0; group < Fragment::kGroups; ++group) {
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
              float& value = fragment.at(slot, group, odd);
              value = operands.logit(value, data, item, first + Fragment::column_of(group, odd, lane));
              greatest = fmaxf(greatest, value);
            }
          }
          cuda::SoftmaxState& state = states[Fragment::row_of(slot, lane)];
          cuda::SoftmaxState mine = state;
          mine.raise_maximum(cuda::SoftmaxState::bounded(cuda::quad_max(greatest)));
          const float reference = cuda::SoftmaxState::reference(mine.maximum);
          float sum = 0.0f;
#pragma unroll
          for (int group = 0; group < Fragment::kGroups; ++group) {
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
              sum += cuda::exp2_approx(fmaf(fragment.at(slot, group, odd), cuda::kLog2E, -reference));
            }
          }
          mine.sum += cuda::quad_sum(sum);
          __syncwarp();
          if (lane % 4 == 0) state = mine;
          __syncwarp();
        }
      });
  for (int slot = 0; slot < Fragment::kSlots; ++slot) {
    const int row = first_row + Gemm::row() + Fragment::row_of(slot, lane);
    if (lane % 4 != 0 || row >= work.rows) continue;
    const cuda::SoftmaxState& state = states[Fragment::row_of(slot, lane)];
    work.states[((item * work.num_splits + split) * kSaliencyParts + part) * work.rows + row] =
        make_float2(state.maximum, state.sum);
  }
}

// Grid: a block for each tile of tokens of each item. Shared memory: the mainloop's, and what the warps across rows
// reduced [kWarpsM][kBlockN].
template <class T, bool kAligned>
__global__ void __launch_bounds__(SaliencyGemm<T>::kThreads)
    kv_saliency_reduce_sm80_kernel(const __grid_constant__ SaliencyWork work) {
  TOKCORE_SHARED_MEMORY(shared);
  using Gemm = SaliencyGemm<T>;
  using Fragment = typename Gemm::Fragment;
  const KvSaliencyParams& p = work.p;
  const int column_blocks = static_cast<int>((p.num_tokens + Gemm::kBlockN - 1) / Gemm::kBlockN);
  const int64_t first_token = int64_t{blockIdx.x % column_blocks} * Gemm::kBlockN;
  const int64_t item = blockIdx.x / column_blocks;
  const SaliencyOperands<T, kAligned> operands(work, item);
  const SaliencyRow* rows = work.row_data + item * work.rows;
  const int lane = Gemm::lane();
  float* totals = reinterpret_cast<float*>(shared + Gemm::kSharedBytes);
  float* mine = totals + Gemm::row() / Fragment::kRows * Gemm::kBlockN + Gemm::column();
  for (int i = lane; i < Fragment::kColumns; i += 32) mine[i] = 0.0f;
  __syncwarp();

  const bool takes_maximum = p.reduce == SaliencyReduce::kMax;
  const int num_tiles = (work.rows + Gemm::kBlockM - 1) / Gemm::kBlockM;
  Gemm gemm(shared);
  gemm.run(
      num_tiles, operands.k_blocks(),
      [&](unsigned char* to, int tile, int k_block) { operands.load_rows(to, tile * Gemm::kBlockM, k_block); },
      [&](unsigned char* to, int, int k_block) { operands.load_tokens(to, first_token, k_block); },
      [](Fragment& fragment, int) { fragment.clear(); },
      [&](Fragment& fragment, int tile) {
        // What does not change from tile to tile is found anew: registers are for the sums.
        const int lane = cuda::ptx::forget(Gemm::lane());
#pragma unroll
        for (int slot = 0; slot < Fragment::kSlots; ++slot) {
          const int row = tile * Gemm::kBlockM + Gemm::row() + Fragment::row_of(slot, lane);
          SaliencyRow data = {0.0f, 0.0f, -1, -1};
          if (row < work.rows) data = rows[row];
#pragma unroll
          for (int group = 0; group < Fragment::kGroups; ++group) {
#pragma unroll
            for (int odd = 0; odd < 2; ++odd) {
              float& value = fragment.at(slot, group, odd);
              const int64_t token = first_token + Gemm::column() + Fragment::column_of(group, odd, lane);
              const float logit = operands.logit(value, data, item, token);
              // A token that the row does not see adds nothing, whatever its lse is.
              value = token <= data.last ? cuda::exp_approx(logit - data.lse) * data.weight : 0.0f;
            }
          }
        }
        const auto join = [&](float a, float b) {
          if (!takes_maximum) return a + b;
          return a != a ? a : b != b ? b : fmaxf(a, b);  // a NaN stays
        };
#pragma unroll
        for (int group = 0; group < Fragment::kGroups; ++group) {
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            float value = fragment.at(0, group, odd);
#pragma unroll
            for (int slot = 1; slot < Fragment::kSlots; ++slot) value = join(value, fragment.at(slot, group, odd));
#pragma unroll
            for (int step = 4; step < 32; step *= 2) {
              value = join(value, __shfl_xor_sync(cuda::kAllLanes, value, step));
            }
            float& total = mine[Fragment::column_of(group, odd, lane)];
            if (lane < 4) total = join(total, value);
          }
        }
        __syncwarp();
      });
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < Gemm::kBlockN; i += Gemm::kThreads) {
    const int64_t token = first_token + i;
    if (token >= p.num_tokens) continue;
    float total = totals[i];
    for (int warp = 1; warp < Gemm::kWarpsM; ++warp) {
      const float other = totals[warp * Gemm::kBlockN + i];
      if (takes_maximum) {
        total = total != total ? total : other != other ? other : fmaxf(total, other);
      } else {
        total += other;
      }
    }
    if (p.reduce == SaliencyReduce::kNormalizedSum) {
      int count = 0;
      for (int row = 0; row < work.rows; row += work.group) count += rows[row].last >= token ? work.group : 0;
      if (count > 0) total /= static_cast<float>(count);
    }
    p.scores[item * p.num_tokens + token] = total;
  }
}

template <class T, bool kAligned>
void launch_saliency(const SaliencyWork& work, bool finds_lse, cuda::Stream stream) {
  using Gemm = SaliencyGemm<T>;
  const char* name = finds_lse ? "kv_saliency_lse_sm80_kernel" : "kv_saliency_reduce_sm80_kernel";
  const int64_t blocks =
      finds_lse ? ceil_div(work.rows, Gemm::kBlockM) * work.num_splits : ceil_div(work.p.num_tokens, Gemm::kBlockN);
  cuda::LaunchConfig config = cuda::launch_over(blocks * work.items(), 1, Gemm::kThreads, stream, name);
  const size_t more = finds_lse ? Gemm::kWarpsN * Gemm::kBlockM * sizeof(cuda::SoftmaxState)
                                : Gemm::kWarpsM * Gemm::kBlockN * sizeof(float);
  config.shared_bytes = Gemm::kSharedBytes + more;
  if (finds_lse) {
    cuda::launch<kv_saliency_lse_sm80_kernel<T, kAligned>>(config, work);
  } else {
    cuda::launch<kv_saliency_reduce_sm80_kernel<T, kAligned>>(config, work);
  }
}

}  // namespace tokcore::kv_cache
