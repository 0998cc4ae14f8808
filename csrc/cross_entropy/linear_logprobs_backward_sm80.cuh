// The backward's products from compute capability 8.0 on: the logits again and dz from them, then dz by e and by c.
#pragma once

#include "cross_entropy/linear_logprobs_differentiate.cuh"
#include "cross_entropy/linear_logprobs_product_tiles.cuh"
#include "tokcore/cuda/gemm_sm80.cuh"
#include "tokcore/cuda/launch_over.h"

namespace tokcore::cross_entropy {

template <class T>
using DifferentiateGemmSm80 = cuda::GemmSm80<T, cuda::Major::kK, cuda::Major::kK>;
template <class T>
using ClassifierGemmSm80 = cuda::GemmSm80<T, cuda::Major::kMn, cuda::Major::kMn>;
template <class T>
using HiddenGemmSm80 = cuda::GemmSm80<T, cuda::Major::kK, cuda::Major::kMn>;

// Grid: a block for each tile of 128 survivors and each vocabulary tile of the chunk.
template <class T, bool kAligned>
__global__ void __launch_bounds__(DifferentiateGemmSm80<T>::kThreads,
                                  DifferentiateGemmSm80<T>::kBlocksPerMultiprocessor)
    linear_logprobs_differentiate_sm80_kernel(const DifferentiateSweep<T> sweep) {
  using Gemm = DifferentiateGemmSm80<T>;
  using Fragment = typename Gemm::Fragment;
  TOKCORE_SHARED_MEMORY(shared);

  const cuda::TileCoordinates at =
      cuda::tile_in_order(blockIdx.x, sweep.active.padded / Gemm::kBlockM, sweep.num_tiles, sweep.row_tile_group);
  const int64_t first_row = at.row * Gemm::kBlockM;
  const int64_t num_rows = sweep.survivors.count(at.column, *sweep.active.count);
  if (first_row >= num_rows) return;
  const int32_t* survivors =
      sweep.survivors.rows == nullptr ? nullptr : sweep.survivors.rows + at.column * sweep.active.padded + first_row;
  const int rows_left = static_cast<int>(min(num_rows - first_row, Gemm::kBlockM));
  const int64_t vocab_row = sweep.first_vocab_row + at.column * kGradientTile;

  Gemm gemm(shared);
  const auto load_e = [&](unsigned char* tile, int, int k_block) {
    const int64_t column = k_block * Gemm::kBlockK;
    cuda::fill_tile_by_row<typename Gemm::TileA, Gemm::kThreads, true>(
        tile, threadIdx.x, sweep.e, column, sweep.e_columns, [&](int i) -> int64_t {
          if (i >= rows_left) return -1;
          return (survivors == nullptr ? first_row + i : survivors[i]) * sweep.e_columns;
        });
  };
  const T* c = sweep.c + vocab_row * sweep.stride_c_row;
  const int vocab_rows_left = static_cast<int>(min(sweep.vocab_size - vocab_row, Gemm::kBlockN));
  const auto load_c = [&](unsigned char* tile, int, int k_block) {
    cuda::fill_tile<typename Gemm::TileB, Gemm::kThreads, kAligned>(
        tile, threadIdx.x, c, sweep.stride_c_row, vocab_rows_left, k_block * Gemm::kBlockK, sweep.hidden_size);
  };
  const auto start = [](Fragment& fragment, int) { fragment.clear(); };
  const auto finish = [&](Fragment& fragment, int) {
    TileGradient<T, Fragment>(sweep, at.column, first_row + gemm.row(), gemm.column(), gemm.lane()).finish(fragment);
  };
  gemm.run(1, static_cast<int>(ceil_div(sweep.hidden_size, Gemm::kBlockK)), load_e, load_c, start, finish);
}

// Grid: a block for each vocabulary tile of the chunk (of fp32: each half of one) and each 128 columns of C; it alone
// makes that part of grad_c.
template <class T>
__global__ void __launch_bounds__(ClassifierGemmSm80<T>::kThreads, ClassifierGemmSm80<T>::kBlocksPerMultiprocessor)
    linear_logprobs_classifier_product_sm80_kernel(const ClassifierProduct<T> product) {
  using Gemm = ClassifierGemmSm80<T>;
  using Fragment = typename Gemm::Fragment;
  TOKCORE_SHARED_MEMORY(shared);

  constexpr unsigned kBlocksOfTile = static_cast<unsigned>(kGradientTile) / Gemm::kBlockM;
  const int64_t num_columns = ceil_div(product.hidden_size, Gemm::kBlockN);
  const int64_t first_column = blockIdx.x % num_columns * Gemm::kBlockN;
  const int64_t tile = blockIdx.x / num_columns / kBlocksOfTile;
  const int first_in_tile = static_cast<int>(blockIdx.x / num_columns % kBlocksOfTile) * Gemm::kBlockM;
  const int64_t num_rows =
      product.survivors.count(tile, product.active.count_from(product.first_active, product.num_rows));
  const int32_t* survivors =
      product.survivors.rows == nullptr ? nullptr : product.survivors.rows + tile * product.active.padded;

  Gemm gemm(shared);
  const T* dz = product.dz.row(tile, 0);
  const T* e = product.e + product.first_active * product.e_columns;
  const auto load_dz = [&](unsigned char* shared_tile, int, int k_block) {
    const int64_t row = int64_t{k_block} * Gemm::kBlockK;
    cuda::fill_tile<typename Gemm::TileA, Gemm::kThreads, true>(
        shared_tile, threadIdx.x, dz + row * product.dz.row_stride, product.dz.row_stride,
        static_cast<int>(min(num_rows - row, Gemm::kBlockK)), first_in_tile, product.dz.columns_of(tile));
  };
  const auto load_e = [&](unsigned char* shared_tile, int, int k_block) {
    const int64_t first = int64_t{k_block} * Gemm::kBlockK;
    cuda::fill_tile_by_row<typename Gemm::TileB, Gemm::kThreads, true>(
        shared_tile, threadIdx.x, e, first_column, product.e_columns, [&](int i) -> int64_t {
          if (first + i >= num_rows) return -1;
          return (survivors == nullptr ? first + i : survivors[first + i]) * product.e_columns;
        });
  };

  const int64_t vocab_row = product.first_vocab_row + tile * kGradientTile + first_in_tile;
  const ClassifierTile<T, Fragment> part(product, vocab_row + gemm.row(), first_column + gemm.column(), gemm.lane());
  const auto start = [&](Fragment& fragment, int) { part.start(fragment); };
  const auto finish = [&](Fragment& fragment, int) { part.finish(fragment); };
  gemm.run(1, static_cast<int>(ceil_div(num_rows, Gemm::kBlockK)), load_dz, load_e, start, finish);
}

// Grid: a block for each tile of 128 active positions and each 128 columns of C.
template <class T, bool kAligned>
__global__ void __launch_bounds__(HiddenGemmSm80<T>::kThreads, HiddenGemmSm80<T>::kBlocksPerMultiprocessor)
    linear_logprobs_hidden_product_sm80_kernel(const HiddenProduct<T> product) {
  using Gemm = HiddenGemmSm80<T>;
  using Fragment = typename Gemm::Fragment;
  constexpr int kBlocksPerTile = static_cast<int>(kGradientTile) / Gemm::kBlockK;
  TOKCORE_SHARED_MEMORY(shared);

  const int64_t num_columns = ceil_div(product.hidden_size, Gemm::kBlockN);
  const int64_t first_row = blockIdx.x / num_columns * Gemm::kBlockM;
  const int64_t first_column = blockIdx.x % num_columns * Gemm::kBlockN;
  const int64_t num_rows = product.active.count_from(product.first_active, product.num_rows);
  const int64_t num_tiles = product.tiles == nullptr ? product.num_tiles : *product.num_listed;
  if (first_row >= num_rows || (num_tiles == 0 && product.continues)) return;
  const int rows_left = static_cast<int>(min(num_rows - first_row, Gemm::kBlockM));
  const auto tile_at = [&](int k_block) -> int64_t {
    const int index = k_block / kBlocksPerTile;
    return product.tiles == nullptr ? index : product.tiles[index];
  };

  Gemm gemm(shared);
  const auto load_dz = [&](unsigned char* shared_tile, int, int k_block) {
    const int64_t tile = tile_at(k_block);
    const int64_t in_tile = k_block % kBlocksPerTile * Gemm::kBlockK;
    const T* dz = product.dz.row(tile, 0);
    cuda::fill_tile_by_row<typename Gemm::TileA, Gemm::kThreads, true>(
        shared_tile, threadIdx.x, dz, in_tile, product.dz.columns_of(tile), [&](int i) -> int64_t {
          const int64_t row = i < rows_left ? product.survivors.rank(tile, first_row + i) : -1;
          return row * product.dz.row_stride;
        });
  };
  const auto load_c = [&](unsigned char* shared_tile, int, int k_block) {
    const int64_t vocab_row =
        product.first_vocab_row + tile_at(k_block) * kGradientTile + k_block % kBlocksPerTile * Gemm::kBlockK;
    cuda::fill_tile<typename Gemm::TileB, Gemm::kThreads, kAligned>(
        shared_tile, threadIdx.x, product.c + vocab_row * product.stride_c_row, product.stride_c_row,
        static_cast<int>(min(product.vocab_size - vocab_row, Gemm::kBlockK)), first_column, product.hidden_size);
  };

  const HiddenTile<T, Fragment> part(product, first_row + gemm.row(), rows_left - gemm.row(),
                                     first_column + gemm.column(), gemm.lane());
  const auto start = [&](Fragment& fragment, int) { part.start(fragment); };
  const auto finish = [&](Fragment& fragment, int) { part.finish(fragment); };
  gemm.run(1, static_cast<int>(num_tiles * kBlocksPerTile), load_dz, load_c, start, finish);
}

template <class T, bool kAligned>
void launch_differentiate_sm80(const DifferentiateSweep<T>& sweep, cuda::Stream stream) {
  using Gemm = DifferentiateGemmSm80<T>;
  const int64_t blocks = sweep.active.padded / Gemm::kBlockM * sweep.num_tiles;
  cuda::LaunchConfig config =
      cuda::launch_over(blocks, 1, Gemm::kThreads, stream, "linear_logprobs_differentiate_sm80");
  config.shared_bytes = Gemm::kSharedBytes;
  cuda::launch<linear_logprobs_differentiate_sm80_kernel<T, kAligned>>(config, sweep);
}

template <class T>
void launch_classifier_product_sm80(const ClassifierProduct<T>& product, cuda::Stream stream) {
  using Gemm = ClassifierGemmSm80<T>;
  const int64_t blocks =
      product.num_tiles * (kGradientTile / Gemm::kBlockM) * ceil_div(product.hidden_size, Gemm::kBlockN);
  cuda::LaunchConfig config =
      cuda::launch_over(blocks, 1, Gemm::kThreads, stream, "linear_logprobs_classifier_product_sm80");
  config.shared_bytes = Gemm::kSharedBytes;
  cuda::launch<linear_logprobs_classifier_product_sm80_kernel<T>>(config, product);
}

template <class T, bool kAligned>
void launch_hidden_product_sm80(const HiddenProduct<T>& product, cuda::Stream stream) {
  using Gemm = HiddenGemmSm80<T>;
  const int64_t blocks = ceil_div(product.num_rows, Gemm::kBlockM) * ceil_div(product.hidden_size, Gemm::kBlockN);
  cuda::LaunchConfig config =
      cuda::launch_over(blocks, 1, Gemm::kThreads, stream, "linear_logprobs_hidden_product_sm80");
  config.shared_bytes = Gemm::kSharedBytes;
  cuda::launch<linear_logprobs_hidden_product_sm80_kernel<T, kAligned>>(config, product);
}

}  // namespace tokcore::cross_entropy
