// The forward on Hopper, for 16-bit elements.
//
// Grid as of the portable kernel (attention_key_tiles.cuh): a block for each tile of 128 queries of each head. One
// thread walks the union of the blocks of keys that the two halves of 64 queries keep and copies keys and values by TMA
// into a ring of slots; with the keys goes which halves keep them. Each half belongs to a warpgroup, which passes over
// the tiles that it does not keep and multiplies by wgmma: the scores of a tile are made side by side with the sum of
// the values of the one before, and become weights while that sum goes on.
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include <climits>

#include "attention/attention_key_tiles.cuh"
#include "attention/attention_softmax.cuh"
#include "attention/attention_store.cuh"
#include "attention/block_sparse_attention_cuda_tasks.cuh"
#include "tokcore/cuda/row_panels.cuh"
#include "tokcore/cuda/tma_ring.cuh"

namespace tokcore::attention {

struct ForwardTaskSm90 {
  ForwardTask task;
  CUtensorMap q;  // [B, H, M, columns]
  CUtensorMap k;  // [B, Hkv, N, columns]
  CUtensorMap v;  // [B, Hkv, N, columns]
};

// Queries stay in registers as operand A where these suffice: then the products for the scores read half as much from
// shared memory, which could not feed them otherwise. 227 KB is what a block may have.
template <class T, int kHeadDim_>
struct ForwardTileSm90 {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kHalves = 2;
  static constexpr int kRows = kHalves * kHalfRows;
  static constexpr int kThreads = 128 * (1 + kHalves);  // one warpgroup copies
  static constexpr int kKeys = 64;
  static constexpr bool kHoldsQueries = kHeadDim <= 128;

  using Panels = cuda::RowPanels<T, kHeadDim>;
  static_assert(Panels::kRows == kKeys && Panels::kRows == kHalfRows);
  static constexpr int kQueryBytes = kHalves * Panels::kBytes;
  using Ring = cuda::TmaRing<kHeadDim == 256 ? 5 : kHeadDim == 128 ? 12 : 16, Panels::kBytes>;
  static constexpr int kSharedBytes = kQueryBytes + Ring::kBytes + static_cast<int>(sizeof(uint64_t)) +
                                      Ring::kSlots * static_cast<int>(sizeof(KeyTile));
  static_assert(kSharedBytes <= 227 * 1024);

  // How many tiles a warpgroup may look at while it holds the values of an earlier one: what it looks at must fit into
  // the ring beside them, or it would wait for ever.
  static constexpr int kLookAhead = (Ring::kSlots - 1) / 2;

  using Scores = cuda::StripFragment<1, kKeys>;
  using Sums = cuda::StripFragment<1, kHeadDim>;
  template <int kN, cuda::Major kMajorB>
  using Instruction = cuda::WgmmaInstruction<kDTypeOf<T>, cuda::Major::kK, kMajorB, kN>;
};

template <class T, int kHeadDim>
__global__ void __launch_bounds__(ForwardTileSm90<T, kHeadDim>::kThreads, 1)
    block_sparse_attention_forward_sm90_kernel(const __grid_constant__ ForwardTaskSm90 call) {
  using Tile = ForwardTileSm90<T, kHeadDim>;
  using Panels = typename Tile::Panels;
  using Place = typename Tile::Ring::Place;
  using Scores = typename Tile::Scores;
  using Sums = typename Tile::Sums;
  TOKCORE_SHARED_MEMORY(shared);
  const BlockSparseAttentionForwardParams& params = call.task.params;
  const AttentionShape& shape = params.shape;
  const int query_length = static_cast<int>(shape.query_length), key_length = static_cast<int>(shape.key_length);
  const QueryRows<Tile::kRows> tile(params, static_cast<int>(blockIdx.x));
  const int first_row = tile.first_row, num_heads = static_cast<int>(shape.num_heads);
  // A query sees the keys before seen_end + its row in the tile, with causal.
  const int seen_end = key_length - query_length + first_row + 1;

  const typename Tile::Ring ring(shared + Tile::kQueryBytes);
  auto* queries_full = reinterpret_cast<uint64_t*>(shared + Tile::kQueryBytes + Tile::Ring::kBytes);
  auto* key_tiles = reinterpret_cast<KeyTile*>(queries_full + 1);  // by slot: whose keys it holds
  if (threadIdx.x == 0) {
    ring.init(4 * Tile::kHalves);
    cuda::TransactionBarrier::init(queries_full, 1);
    cutlass::arch::fence_barrier_init();
  }
  __syncthreads();

  if (threadIdx.x < 128) {
    // Copies, by one thread.
    cutlass::arch::warpgroup_reg_dealloc<40>();
    if (threadIdx.x != 0) return;
    using Hint = cute::TMA::CacheHintSm90;
    const int batch = tile.index / num_heads, head = tile.index - batch * num_heads;
    const int kv_head = head / (num_heads / static_cast<int>(shape.num_kv_heads));
    const int last_row = static_cast<int>(min(first_row + Tile::kRows, query_length)) - 1;
    KeyTileWalk<Tile::kHalves, Tile::kKeys> walk(params, batch, head, first_row, last_row);
    bool has_queries = false;
    Place place;
#pragma unroll 1
    for (walk.advance(); walk.tile().exists(); walk.advance()) {
      KeyTile at = walk.tile();
      // With causal, a tile may lie after all rows of the first half though the second sees it.
      if (params.causal && at.first >= seen_end + kHalfRows - 1) at.halves &= ~1u;
      if (!at.exists()) continue;
      if (!has_queries) {
        has_queries = true;
        cuda::TransactionBarrier::arrive_and_expect_tx(queries_full, Tile::kQueryBytes);
        for (int half = 0; half < Tile::kHalves; ++half) {
          Panels::copy(call.q, queries_full, Hint::EVICT_FIRST, shared + half * Panels::kBytes,
                       first_row + half * kHalfRows, head, batch);
        }
      }
      ring.claim(place);
      key_tiles[place.slot] = at;
      ring.expect_copies(place);
      Panels::copy(call.k, ring.full(place), Hint::EVICT_LAST, ring.slot(place), at.first, kv_head, batch);
      place.advance();
      ring.claim(place);
      ring.expect_copies(place);
      Panels::copy(call.v, ring.full(place), Hint::EVICT_LAST, ring.slot(place), at.first, kv_head, batch);
      place.advance();
    }
    ring.claim(place);
    key_tiles[place.slot] = {0, 0};
    ring.expect_nothing(place);
    return;
  }

  // Products.
  cutlass::arch::warpgroup_reg_alloc<232>();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int half = static_cast<int>(threadIdx.x) / 128 - 1;
  const int row_of_half = static_cast<int>(threadIdx.x) / 32 % 4 * Scores::kRows;
  const int warp_row = half * kHalfRows + row_of_half;
  const unsigned char* queries = shared + half * Panels::kBytes;

  Place place;  // of the keys of the tile `at`
  KeyTile at = {0, 0};
  // Moves on to a tile that this half keeps and waits for its keys; what it does not keep is given back. No such tile:
  // there is none, or it is not among the next `most`.
  const auto seek = [&](int most) {
#pragma unroll 1
    for (int i = 0; i < most; ++i) {
      ring.wait(place);
      at = key_tiles[place.slot];
      if (!at.exists()) return false;
      if (at.is_kept_by(half)) return true;
#pragma unroll 1
      for (int operand = 0; operand < 2; ++operand) {
        ring.wait(place);  // values too: given back before they came, they would be counted for the round before
        ring.give_back(place);
        place.advance();
      }
    }
    return false;
  };

  Sums sums;
  sums.clear();
  Scores scores;
  cuda::FragmentA weights[Panels::kRowSteps], held_queries[Tile::kHoldsQueries ? Panels::kColumnSteps : 1];
  RowSoftmax<Scores, false> softmax(call.task.scale);

  // scores = queries keys^T, sums += weights values: started here, and waited for by those who start them.
  const auto start_scores = [&] {
    using Instruction = typename Tile::template Instruction<Tile::kKeys, cuda::Major::kK>;
    const uint64_t keys = Panels::descriptor(ring.slot(place)), all_queries = Panels::descriptor(queries);
#pragma unroll
    for (int step = 0; step < Panels::kColumnSteps; ++step) {
      const uint64_t b = Panels::at_columns(keys, step);
      const cuda::ScaleOut scale = step == 0 ? cuda::ScaleOut::Zero : cuda::ScaleOut::One;
      if constexpr (Tile::kHoldsQueries) {
        cuda::wgmma<typename Instruction::FromRegisters>(held_queries[step], b, scores, scale);
      } else {
        cuda::wgmma<typename Instruction::Type>(Panels::at_columns(all_queries, step), b, scores, scale);
      }
    }
    cute::warpgroup_commit_batch();
  };
  const auto start_sums = [&](const Place& values_place) {
    using Instruction = typename Tile::template Instruction<kHeadDim, cuda::Major::kMn>::FromRegisters;
    const uint64_t values = Panels::descriptor(ring.slot(values_place));
#pragma unroll
    for (int step = 0; step < Panels::kRowSteps; ++step) {
      cuda::wgmma<Instruction>(weights[step], Panels::at_rows(values, step), sums);
    }
    cute::warpgroup_commit_batch();
  };
  // Scores of the tile `at` become weights in fp32; where maxima rise, shrink(slot, factor).
  const auto weigh = [&](auto&& shrink) {
    const int end = at.first + Tile::kKeys;
    if (end > key_length || (params.causal && end > seen_end + warp_row)) {
      cut_scores(scores, at.first, key_length, params.causal, seen_end + warp_row, lane);
    }
    softmax.add(scores, shrink);
  };
  const auto shrink_sums = [&](int slot, float factor) {
#pragma unroll
    for (int group = 0; group < Sums::kGroups; ++group) {
      sums.at(slot, group, 0) *= factor;
      sums.at(slot, group, 1) *= factor;
    }
  };
  const auto round_weights = [&] {
#pragma unroll
    for (int step = 0; step < Panels::kRowSteps; ++step) weights[step] = cuda::operand_of<T>(scores, 0, step);
  };

  if (seek(INT_MAX)) {
    cuda::TransactionBarrier::wait(queries_full, 0);
    if constexpr (Tile::kHoldsQueries) {
#pragma unroll
      for (int step = 0; step < Panels::kColumnSteps; ++step) {
        held_queries[step] = Panels::read(queries, row_of_half, step, lane);
      }
    }
    do {
      // The first tile of a run: nothing to do side by side.
      cuda::fence_sums(scores);
      cute::warpgroup_arrive();
      start_scores();
      cute::warpgroup_wait<0>();
      cuda::fence_sums(scores);
      ring.give_back(place);
      weigh(shrink_sums);
      round_weights();
      Place values = place.next();
      place = values.next();

      while (seek(Tile::kLookAhead)) {
        ring.wait(values);
        cuda::fence_sums(scores);
        cuda::fence_sums(sums);
        cute::warpgroup_arrive();
        start_scores();
        start_sums(values);
        cute::warpgroup_wait<1>();
        cuda::fence_sums(scores);
        ring.give_back(place);
        float factors[Sums::kSlots] = {1.0f, 1.0f};
        bool shrinks = false;
        weigh([&](int slot, float factor) {
          factors[slot] = factor;
          shrinks = true;
        });
        cuda::settle(softmax.sum(0) + softmax.sum(1));
        cute::warpgroup_wait<0>();
        cuda::fence_sums(sums);
        ring.give_back(values);
        if (shrinks) {
#pragma unroll
          for (int slot = 0; slot < Sums::kSlots; ++slot) shrink_sums(slot, factors[slot]);
        }
        round_weights();
        values = place.next();
        place = values.next();
      }

      ring.wait(values);
      cuda::fence_sums(sums);
      cute::warpgroup_arrive();
      start_sums(values);
      cute::warpgroup_wait<0>();
      cuda::fence_sums(sums);
      ring.give_back(values);
    } while (seek(INT_MAX));
  }

  // Results. Which queries they are of was not kept in registers.
  const QueryRows<Tile::kRows> written(params, cuda::ptx::forget(static_cast<int>(blockIdx.x)));
  const int num_rows = query_length - written.first_row - warp_row;
  if (num_rows <= 0) return;
  const int64_t row = static_cast<int64_t>(written.index) * query_length + written.first_row + warp_row;
  store_results<T>(sums, softmax, params, row, num_rows, 0, lane);
}

template <class T, int kHeadDim>
void launch_forward_sm90(const ForwardTask& task, cuda::Stream stream) {
  using Tile = ForwardTileSm90<T, kHeadDim>;
  const BlockSparseAttentionForwardParams& params = task.params;
  const AttentionShape& shape = params.shape;
  const auto map = [&](const HeadsView& view, int64_t heads, int64_t rows) {
    return Tile::Panels::make_map(view.data, shape.batch, heads, rows, task.columns, view.stride_batch,
                                  view.stride_head, view.stride_row);
  };
  const ForwardTaskSm90 call = {task, map(params.q, shape.num_heads, shape.query_length),
                                map(params.k, shape.num_kv_heads, shape.key_length),
                                map(params.v, shape.num_kv_heads, shape.key_length)};
  const int64_t blocks = shape.batch * shape.num_heads * ceil_div(shape.query_length, Tile::kRows);
  cuda::LaunchConfig config =
      cuda::launch_over(blocks, 1, Tile::kThreads, stream, "block_sparse_attention_forward_sm90");
  config.shared_bytes = Tile::kSharedBytes;
  cuda::launch<block_sparse_attention_forward_sm90_kernel<T, kHeadDim>>(config, call);
}

}  // namespace tokcore::attention
