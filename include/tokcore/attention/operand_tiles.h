// Matrices of one head as operands of block products, in tiles of 32 rows that many query or key blocks share.
#pragma once

#include <type_traits>

#include "tokcore/attention/block_sparse_attention.h"
#include "tokcore/cpu/block_product.h"

namespace tokcore::cpu::TOKCORE_ISA {

inline constexpr int kVecsPerRow = kBlock / Vec::kLanes;
inline constexpr int64_t kTileCells = kBlock * kBlock;

// A matrix [count, size] with dense rows.
template <class T>
struct Rows {
  const T* data;
  int64_t stride;
  int64_t count;
  int64_t size;

  int64_t num_tiles() const { return ceil_div(count, kBlock); }
  // Pointers to the 32 rows of a tile; null past the end.
  void tile(int64_t index, const T* (&rows)[kBlock]) const {
    for (int64_t i = 0; i < kBlock; ++i) {
      const int64_t row = index * kBlock + i;
      rows[i] = row < count ? data + row * stride : nullptr;
    }
  }
};

template <class T>
Rows<T> rows_of_head(const HeadsView& view, int64_t batch, int64_t head, int64_t count, int64_t size) {
  return {view.head<T>(batch, head), view.stride_row, count, size};
}

// Tiles as the first operand of products over the columns. Where the engine can read the rows in place, only a ragged
// last tile is copied.
template <class Engine, class T>
class RowTiles {
 public:
  using Operand = typename Engine::Operand;

  // Tiles are read in place if their lines are whole and their rows near one another: rows far apart fall into one
  // another's cache sets.
  static bool can_read_in_place(const HeadsView& view, int64_t size) {
    if (!std::is_same_v<Operand, T> || size % kBlock != 0) return false;
    constexpr int64_t kLine = 64 / sizeof(T);
    const bool aligned = reinterpret_cast<uintptr_t>(view.data) % 64 == 0 && view.stride_batch % kLine == 0 &&
                         view.stride_head % kLine == 0 && view.stride_row % kLine == 0;
    return aligned && view.stride_row >= size && view.stride_row <= 2 * size;
  }
  static int64_t elements(int64_t count, int64_t size, bool in_place) {
    const int64_t copied = in_place ? (count % kBlock == 0 ? 0 : kBlock) : round_up(count, kBlock);
    return copied * row_operand_stride(size);
  }

  RowTiles() = default;
  RowTiles(const Rows<T>& rows, bool in_place, Operand* copies)
      : rows_(rows),
        copies_(copies),
        stride_(row_operand_stride(rows.size)),
        first_copied_(in_place ? rows.count / kBlock : 0) {}

  void pack(int64_t tile) const {
    if (tile < first_copied_) return;
    Engine::pack_rows(rows_.data + tile * kBlock * rows_.stride, rows_.stride, min(rows_.count - tile * kBlock, kBlock),
                      rows_.size, copies_ + (tile - first_copied_) * kBlock * stride_, stride_);
  }
  RowOperand<Operand> operator[](int64_t tile) const {
    if constexpr (std::is_same_v<Operand, T>) {
      if (tile < first_copied_) return {rows_.data + tile * kBlock * rows_.stride, rows_.stride};
    }
    return {copies_ + (tile - first_copied_) * kBlock * stride_, stride_};
  }

 private:
  Rows<T> rows_ = {};
  Operand* copies_ = nullptr;
  int64_t stride_ = 0;
  int64_t first_copied_ = 0;
};

// The transpose [size, count] as the first operand of products over the rows: [tile][32 columns][32 rows], so that a
// product can take any list of tiles as its steps and reads whole lines one after the other.
template <class Engine, class T>
class TransposedTiles {
 public:
  using Operand = typename Engine::Operand;

  static int64_t elements(int64_t count, int64_t size) { return round_up(count, kBlock) * round_up(size, kBlock); }

  TransposedTiles() = default;
  TransposedTiles(const Rows<T>& rows, Operand* packed)
      : rows_(rows), packed_(packed), tile_elements_(round_up(rows.size, kBlock) * kBlock) {}

  void pack(int64_t tile) const {
    const T* rows[kBlock];
    rows_.tile(tile, rows);
    for (int64_t column = 0; column < rows_.size; column += kBlock) {
      Engine::pack_transposed_block(rows, column, rows_.size, packed_ + tile * tile_elements_ + column * kBlock);
    }
  }
  // 32 columns; step t of a product is tile t.
  RowOperand<Operand> columns(int64_t block) const { return {packed_ + block * kTileCells, kBlock, tile_elements_}; }

 private:
  Rows<T> rows_ = {};
  Operand* packed_ = nullptr;
  int64_t tile_elements_ = 0;
};

}  // namespace tokcore::cpu::TOKCORE_ISA
