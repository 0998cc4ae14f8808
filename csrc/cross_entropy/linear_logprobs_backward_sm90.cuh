// The backward's products on Hopper, where every active position takes part (without the filter): the logits again and
// dz from them, then dz by e and by c. Persistent: clusters of two blocks take pairs of tiles that share an operand.
#pragma once

#include "cross_entropy/linear_logprobs_differentiate.cuh"
#include "cross_entropy/linear_logprobs_product_tiles.cuh"
#include "tokcore/cuda/gemm_sm90.cuh"
#include "tokcore/cuda/launch.h"
#include "tokcore/cuda/ptx.h"

namespace tokcore::cross_entropy {

template <class T>
using DifferentiateGemmSm90 = cuda::GemmSm90<T, cuda::Major::kK, cuda::Major::kK, 256, 128>;
template <class T>
using ClassifierGemmSm90 = cuda::GemmSm90<T, cuda::Major::kMn, cuda::Major::kMn, 128, 256>;
template <class T>
using HiddenGemmSm90 = cuda::GemmSm90<T, cuda::Major::kK, cuda::Major::kMn, 256, 128>;

// Arguments of a kernel with the maps of its two operands.
template <class Arguments>
struct WithTensorMaps {
  Arguments arguments;
  CUtensorMap a;
  CUtensorMap b;
};

// dz for copies of `box_rows` rows by 64 columns of one tile. Tiles side by side in one matrix, whose last one may be
// narrower, are a single wide tile to the map.
template <class T>
CUtensorMap make_gradient_map(const GradientTiles<T>& dz, int64_t num_rows, int64_t num_tiles, uint32_t box_rows) {
  const int64_t columns = dz.is_matrix() ? dz.columns : kGradientTile;
  const uint64_t sizes[] = {static_cast<uint64_t>(columns), static_cast<uint64_t>(num_rows),
                            static_cast<uint64_t>(dz.is_matrix() ? 1 : num_tiles)};
  const uint64_t strides_bytes[] = {static_cast<uint64_t>(dz.row_stride) * sizeof(T),
                                    static_cast<uint64_t>(dz.tile_stride) * sizeof(T)};
  const uint32_t box[] = {64, box_rows, 1};
  return cuda::make_tensor_map(cuda::tensor_map_element(kDTypeOf<T>), dz.data, sizes, strides_bytes, box,
                               cuda::TensorMapSwizzle::k128);
}

// One copy of dz: rows from `row` and columns from `column` on of one tile.
template <class T, class Copy>
TOKCORE_DEVICE void copy_gradient(Copy&& copy, const CUtensorMap& map, const GradientTiles<T>& dz, int tile, int row,
                                  int column) {
  const int first_column = dz.is_matrix() ? tile * static_cast<int>(kGradientTile) : 0;
  copy(map, first_column + column, row, dz.is_matrix() ? 0 : tile);
}

// Runs the roles of a block over the pairs of its cluster: num_k_blocks_of(pair), -1 where there is nothing to do, and
// copies, start and finish as in GemmSm90. A pair may lack its second tile, whose operands then are zero or belong to
// nobody; start and finish know.
template <class Gemm, class NumKBlocks, class CopyA, class CopyB, class Start, class Finish>
TOKCORE_DEVICE void run_pairs_sm90(unsigned char* shared, int num_pairs, NumKBlocks&& num_k_blocks_of, CopyA&& copy_a,
                                   CopyB&& copy_b, Start&& start, Finish&& finish) {
  Gemm gemm(shared);
  if (Gemm::is_producer()) {
    Gemm::give_registers();
    if (!Gemm::is_copying_thread()) return;
    for (int pair = Gemm::cluster(); pair < num_pairs; pair += Gemm::num_clusters()) {
      gemm.produce(
          1, num_k_blocks_of(pair), [&](auto&& copy, int, int mn, int k_block) { copy_a(copy, pair, mn, k_block); },
          [&](auto&& copy, int, int mn, int k_block) { copy_b(copy, pair, mn, k_block); });
    }
    gemm.drain();
    return;
  }
  Gemm::take_registers();
  using Fragment = typename Gemm::Fragment;
  for (int pair = Gemm::cluster(); pair < num_pairs; pair += Gemm::num_clusters()) {
    const int num_k_blocks = num_k_blocks_of(pair);
    if (num_k_blocks < 0) continue;
    gemm.consume(
        1, num_k_blocks, [&](Fragment& fragment, int) { start(fragment, pair); },
        // While products are summed, every register counts: no address is kept from start to finish.
        [&](Fragment& fragment, int) { finish(fragment, cuda::ptx::forget(pair)); });
  }
}

template <class T>
__global__ void __launch_bounds__(DifferentiateGemmSm90<T>::kThreads, 1)
    linear_logprobs_differentiate_sm90_kernel(const __grid_constant__ WithTensorMaps<DifferentiateSweep<T>> params) {
  using Gemm = DifferentiateGemmSm90<T>;
  using Fragment = typename Gemm::Fragment;
  TOKCORE_SHARED_MEMORY(shared);
  const DifferentiateSweep<T>& sweep = params.arguments;
  const int num_rows = *sweep.active.count;
  const int num_row_tiles = static_cast<int>(ceil_div(sweep.active.padded, int64_t{Gemm::kBlockM}));
  const int num_k_blocks = static_cast<int>(ceil_div(sweep.hidden_size, int64_t{Gemm::kBlockK}));
  const int group = static_cast<int>(sweep.row_tile_group), num_tiles = static_cast<int>(sweep.num_tiles);
  const int num_columns = (num_tiles + Gemm::kCluster - 1) / Gemm::kCluster;
  const auto first_row = [&](int pair) {
    return cuda::tile_in_order(pair, num_row_tiles, num_columns, group).row * Gemm::kBlockM;
  };
  const auto tile_of = [&](int pair) {
    return cuda::tile_in_order(pair, num_row_tiles, num_columns, group).column * Gemm::kCluster + Gemm::rank();
  };

  run_pairs_sm90<Gemm>(
      shared, num_row_tiles * num_columns, [&](int pair) { return first_row(pair) < num_rows ? num_k_blocks : -1; },
      [&](auto&& copy, int pair, int mn, int k_block) {
        copy(params.a, k_block * Gemm::kBlockK, first_row(pair) + mn);
      },
      [&](auto&& copy, int pair, int mn, int k_block) {
        const int vocab_row = static_cast<int>(sweep.first_vocab_row) + tile_of(pair) * Gemm::kBlockN;
        copy(params.b, k_block * Gemm::kBlockK, vocab_row + mn);
      },
      [](Fragment& fragment, int) { fragment.clear(); },
      [&](Fragment& fragment, int pair) {
        const int row = first_row(pair) + Gemm::row();
        if (row >= sweep.active.padded || tile_of(pair) >= num_tiles) return;
        TileGradient<T, Fragment>(sweep, tile_of(pair), row, 0, Gemm::lane()).finish(fragment);
      });
}

template <class T>
__global__ void __launch_bounds__(ClassifierGemmSm90<T>::kThreads, 1) linear_logprobs_classifier_product_sm90_kernel(
    const __grid_constant__ WithTensorMaps<ClassifierProduct<T>> params) {
  using Gemm = ClassifierGemmSm90<T>;
  using Fragment = typename Gemm::Fragment;
  TOKCORE_SHARED_MEMORY(shared);
  const ClassifierProduct<T>& product = params.arguments;
  const int num_columns = static_cast<int>(ceil_div(product.hidden_size, int64_t{Gemm::kBlockN}));
  const int64_t num_rows = product.active.count_from(product.first_active, product.num_rows);
  const int num_k_blocks = static_cast<int>(ceil_div(num_rows, int64_t{Gemm::kBlockK}));
  const int num_tiles = static_cast<int>(product.num_tiles);
  const int num_row_pairs = (num_tiles + Gemm::kCluster - 1) / Gemm::kCluster;
  const auto tile_of = [&](int pair) { return pair / num_columns * Gemm::kCluster + Gemm::rank(); };
  const auto first_column = [&](int pair) { return pair % num_columns * Gemm::kBlockN; };
  const auto part = [&](int pair) {
    const int64_t vocab_row = product.first_vocab_row + tile_of(pair) * kGradientTile + Gemm::row();
    return ClassifierTile<T, Fragment>(product, vocab_row, first_column(pair), Gemm::lane());
  };

  run_pairs_sm90<Gemm>(
      shared, num_row_pairs * num_columns, [&](int) { return num_k_blocks; },
      [&](auto&& copy, int pair, int mn, int k_block) {
        copy_gradient(copy, params.a, product.dz, tile_of(pair), k_block * Gemm::kBlockK, mn);
      },
      [&](auto&& copy, int pair, int mn, int k_block) {
        copy(params.b, first_column(pair) + mn, static_cast<int>(product.first_active) + k_block * Gemm::kBlockK);
      },
      [&](Fragment& fragment, int pair) { tile_of(pair) < num_tiles ? part(pair).start(fragment) : fragment.clear(); },
      [&](Fragment& fragment, int pair) {
        if (tile_of(pair) < num_tiles) part(pair).finish(fragment);
      });
}

template <class T>
__global__ void __launch_bounds__(HiddenGemmSm90<T>::kThreads, 1)
    linear_logprobs_hidden_product_sm90_kernel(const __grid_constant__ WithTensorMaps<HiddenProduct<T>> params) {
  using Gemm = HiddenGemmSm90<T>;
  using Fragment = typename Gemm::Fragment;
  constexpr int kBlocksPerTile = static_cast<int>(kGradientTile) / Gemm::kBlockK;
  TOKCORE_SHARED_MEMORY(shared);
  const HiddenProduct<T>& product = params.arguments;
  const int num_columns = static_cast<int>(ceil_div(product.hidden_size, int64_t{Gemm::kBlockN}));
  const int num_row_tiles = static_cast<int>(ceil_div(product.num_rows, int64_t{Gemm::kBlockM}));
  const int num_rows = static_cast<int>(product.active.count_from(product.first_active, product.num_rows));
  const int num_k_blocks = static_cast<int>(product.num_tiles) * kBlocksPerTile;
  const int num_column_pairs = (num_columns + Gemm::kCluster - 1) / Gemm::kCluster;
  const auto first_row = [&](int pair) { return pair / num_column_pairs * Gemm::kBlockM; };
  const auto first_column = [&](int pair) {
    return (pair % num_column_pairs * Gemm::kCluster + Gemm::rank()) * Gemm::kBlockN;
  };
  // Of columns past the last one there is nothing: the tile knows.
  const auto part = [&](int pair) {
    const int row = first_row(pair) + Gemm::row();
    return HiddenTile<T, Fragment>(product, row, num_rows - row, first_column(pair), Gemm::lane());
  };

  run_pairs_sm90<Gemm>(
      shared, num_row_tiles * num_column_pairs,
      [&](int pair) { return first_row(pair) < num_rows ? num_k_blocks : -1; },
      [&](auto&& copy, int pair, int mn, int k_block) {
        copy_gradient(copy, params.a, product.dz, k_block / kBlocksPerTile, first_row(pair) + mn,
                      k_block % kBlocksPerTile * Gemm::kBlockK);
      },
      [&](auto&& copy, int pair, int mn, int k_block) {
        copy(params.b, first_column(pair) + mn, static_cast<int>(product.first_vocab_row) + k_block * Gemm::kBlockK);
      },
      [&](Fragment& fragment, int pair) { part(pair).start(fragment); },
      [&](Fragment& fragment, int pair) { part(pair).finish(fragment); });
}

template <class T>
void launch_differentiate_sm90(const DifferentiateSweep<T>& sweep, cuda::Stream stream) {
  using Gemm = DifferentiateGemmSm90<T>;
  const WithTensorMaps<DifferentiateSweep<T>> params = {
      sweep, Gemm::template make_map<true>(sweep.e, sweep.active.padded, sweep.e_columns, sweep.e_columns),
      Gemm::template make_map<false>(sweep.c, sweep.vocab_size, sweep.hidden_size, sweep.stride_c_row)};
  const int64_t pairs =
      ceil_div(sweep.active.padded, int64_t{Gemm::kBlockM}) * ceil_div(sweep.num_tiles, int64_t{Gemm::kCluster});
  cuda::launch<linear_logprobs_differentiate_sm90_kernel<T>>(
      Gemm::launch_config(pairs, 0, stream, "linear_logprobs_differentiate_sm90"), params);
}

template <class T>
void launch_classifier_product_sm90(const ClassifierProduct<T>& product, cuda::Stream stream) {
  using Gemm = ClassifierGemmSm90<T>;
  const WithTensorMaps<ClassifierProduct<T>> params = {
      product, make_gradient_map(product.dz, product.num_rows, product.num_tiles, Gemm::template box_rows<true>()),
      Gemm::template make_map<false>(product.e, product.active.padded, product.e_columns, product.e_columns)};
  const int64_t pairs =
      ceil_div(product.num_tiles, int64_t{Gemm::kCluster}) * ceil_div(product.hidden_size, int64_t{Gemm::kBlockN});
  cuda::launch<linear_logprobs_classifier_product_sm90_kernel<T>>(
      Gemm::launch_config(pairs, 0, stream, "linear_logprobs_classifier_product_sm90"), params);
}

template <class T>
void launch_hidden_product_sm90(const HiddenProduct<T>& product, cuda::Stream stream) {
  using Gemm = HiddenGemmSm90<T>;
  const WithTensorMaps<HiddenProduct<T>> params = {
      product, make_gradient_map(product.dz, product.num_rows, product.num_tiles, Gemm::template box_rows<true>()),
      Gemm::template make_map<false>(product.c, product.vocab_size, product.hidden_size, product.stride_c_row)};
  const int64_t pairs = ceil_div(product.num_rows, int64_t{Gemm::kBlockM}) *
                        ceil_div(product.hidden_size, int64_t{Gemm::kBlockN * Gemm::kCluster});
  cuda::launch<linear_logprobs_hidden_product_sm90_kernel<T>>(
      Gemm::launch_config(pairs, 0, stream, "linear_logprobs_hidden_product_sm90"), params);
}

}  // namespace tokcore::cross_entropy
