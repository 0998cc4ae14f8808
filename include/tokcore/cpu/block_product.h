// The one matrix product of the CPU kernels: a block of kBlock rows times a panel of kBlock columns.
//
//   out[32][32] (+)= a[32][K] * panel[K][32]
//
// The rows of out are out_stride elements apart. A load waits for every earlier store that has the same low 12 bits of
// the address, and a tile is 4 KB when dense: while one tile is being stored, nothing can be read from a dense one
// beside it. Two tiles with a stride of 64, row by row side by side, never meet.
//
// An engine says how operands are stored, packs them and multiplies. Three engines share one interface: AMX tiles for
// bf16 (block_product_amx.h), AMX tiles for fp32 in three parts (block_product_split.h), and FMA at every
// instruction-set level. K is walked in steps of 32; a list of steps may leave some out (a sparse product), and `step`
// is called once per step so that other work can be woven into the wait for the matrix unit.
#pragma once

#include "tokcore/common/math.h"
#include "tokcore/cpu/vec.h"

namespace tokcore::cpu::TOKCORE_ISA {

inline constexpr int kBlock = 32;  // rows and columns of a block, and the elements of K in one step

struct NoStep {
  void operator()() const {}
};

// The steps of K to walk: first, first + 1, … or the listed ones from there.
struct StepList {
  const int32_t* steps = nullptr;  // ascending, or null
  int first = 0;
  int count = 0;
  bool compact = false;  // the panel holds the listed steps alone, one after the other
  int operator[](int i) const { return steps == nullptr ? first + i : steps[first + i]; }
  int in_panel(int i) const { return compact ? first + i : (*this)[i]; }
};

template <class Operand>
struct RowOperand {
  const Operand* data;  // [32][K]
  int64_t row_stride;
  int64_t step_stride = kBlock;  // elements between the steps of a row
};

// block[i][c] = rows[i][column + c] of 32 x 32 elements; missing rows (null) and columns give 0.
template <class T>
void load_block(const T* const* rows, int64_t column, int64_t num_columns, float* block) {
  const int64_t width = min(num_columns - column, kBlock);
  for (int row = 0; row < kBlock; ++row) {
    const T* from = rows[row];
    float* to = block + row * kBlock;
    if (from != nullptr && width == kBlock) {
      for (int i = 0; i < kBlock; i += Vec::kLanes) Vec::load(from + column + i).store(to + i);
    } else {
      for (int64_t i = 0; i < kBlock; ++i) to[i] = from != nullptr && i < width ? to_float(from[column + i]) : 0.0f;
    }
  }
}

struct FmaEngine {
  using Operand = float;
  struct WorkerState {};
  static constexpr int kStepsPerPass = 8;  // 32 KB of panel

  // Multiplies kRows rows at a time: enough accumulators to hide the latency of an FMA, few enough to stay in
  // registers.
  static constexpr int kRows = Vec::kLanes == 16 ? 8 : 4;
  static constexpr int kColumns = 2 * Vec::kLanes;

  template <class Step>
  static void multiply(RowOperand<float> a, const float* panel, StepList steps, bool accumulate, float* out, Step&&,
                       int64_t out_stride = kBlock) {
    for (int row = 0; row < kBlock; row += kRows) {
      for (int column = 0; column < kBlock; column += kColumns) {
        multiply_rows({a.data + row * a.row_stride, a.row_stride, a.step_stride}, panel + column, steps, accumulate,
                      out + row * out_stride + column, out_stride);
      }
    }
  }

  // Panel of the transposed rows: panel[k][i] = rows[i][k]; missing rows (null) and k >= size give 0.
  template <class T>
  static void pack_transposed(const T* const* rows, int64_t size, float* panel) {
    const int64_t padded = round_up(size, kBlock);
    for (int64_t k0 = 0; k0 < padded; k0 += kBlock) {
      float block[kBlock][kBlock];  // [row][k], so that each row is read in one go
      for (int row = 0; row < kBlock; ++row) {
        for (int k = 0; k < kBlock; ++k) {
          block[row][k] = rows[row] != nullptr && k0 + k < size ? to_float(rows[row][k0 + k]) : 0.0f;
        }
      }
      for (int k = 0; k < kBlock; ++k) {
        for (int row = 0; row < kBlock; ++row) panel[(k0 + k) * kBlock + row] = block[row][k];
      }
    }
  }

  // Panel of 32 columns of consecutive rows: panel[k][j] = rows[k][column + j], k in [0, num_rows) padded by zeros.
  template <class T>
  static void pack_columns(const T* const* rows, int64_t num_rows, int64_t column, int64_t num_columns, float* panel) {
    const int64_t width = min(num_columns - column, kBlock);
    const int64_t padded = round_up(num_rows, kBlock);
    for (int64_t k = 0; k < padded; ++k) {
      float* out = panel + k * kBlock;
      const T* row = k < num_rows ? rows[k] : nullptr;
      if (row != nullptr && width == kBlock) {
        for (int j = 0; j < kBlock; j += Vec::kLanes) Vec::load(row + column + j).store(out + j);
      } else {
        for (int j = 0; j < kBlock; ++j) out[j] = row != nullptr && j < width ? to_float(row[column + j]) : 0.0f;
      }
    }
  }

  // Row operand: out[i][k] = source[i][k] for one block of rows, missing rows and k >= size padded by zeros.
  template <class T>
  static void pack_rows(const T* source, int64_t source_stride, int64_t num_rows, int64_t size, float* out,
                        int64_t out_stride) {
    const int64_t padded = round_up(size, kBlock);
    for (int64_t row = 0; row < kBlock; ++row) {
      float* to = out + row * out_stride;
      int64_t k = 0;
      if (row < num_rows) {
        const T* from = source + row * source_stride;
        for (; k + Vec::kLanes <= size; k += Vec::kLanes) Vec::load(from + k).store(to + k);
        for (; k < size; ++k) to[k] = to_float(from[k]);
      }
      for (; k < padded; ++k) to[k] = 0.0f;
    }
  }
  // Row operand of 32 rows and one step: out[c][i] = rows[i][column + c]; missing rows (null) and columns give 0.
  template <class T>
  static void pack_transposed_block(const T* const* rows, int64_t column, int64_t num_columns, float* out) {
    float block[kBlock * kBlock];
    load_block(rows, column, num_columns, block);
    store_transposed_half(block, out, kBlock);
    store_transposed_half(block + kBlock / 2, out + kBlock / 2 * kBlock, kBlock);
  }
  // Rows k and k + 1 of a panel, k even, from `column` on; as many columns as a Vec has lanes.
  static void store_pair(Vec even, Vec odd, float* panel, uint32_t k, uint32_t column) {
    even.store(panel + k * kBlock + column);
    odd.store(panel + (k + 1) * kBlock + column);
  }
  // 32 numbers of a row operand.
  static void store_row(const float* from, float* to) {
    for (int i = 0; i < kBlock; i += Vec::kLanes) Vec::load(from + i).store(to + i);
  }
  // to[j][i] = block[i][j] for 16 columns j of a dense 32 x 32 block: rows of a row operand.
  static void store_transposed_half(const float* block, float* to, int64_t stride) {
    for (int j = 0; j < kBlock / 2; ++j) {
      for (int i = 0; i < kBlock; ++i) to[j * stride + i] = block[i * kBlock + j];
    }
  }

 private:
  static void multiply_rows(RowOperand<float> a, const float* panel, StepList steps, bool accumulate, float* out,
                            int64_t out_stride) {
    // A pass sums from zero and joins what is there at its end: short chains of additions round less.
    Vec sum[kRows][2];
    for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = Vec(0.0f);
    for (int s = 0; s < steps.count; ++s) {
      const float* a_block = a.data + steps[s] * a.step_stride;
      const float* panel_block = panel + int64_t{steps.in_panel(s)} * kBlock * kBlock;
      for (int k = 0; k < kBlock; ++k) {
        const Vec left = Vec::load(panel_block + k * kBlock);
        const Vec right = Vec::load(panel_block + k * kBlock + Vec::kLanes);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const Vec factor(a_block[i * a.row_stride + k]);
          sum[i][0] = fma(factor, left, sum[i][0]);
          sum[i][1] = fma(factor, right, sum[i][1]);
        }
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < 2; ++j) {
        float* cells = out + i * out_stride + j * Vec::kLanes;
        (accumulate ? Vec::load(cells) + sum[i][j] : sum[i][j]).store(cells);
      }
    }
  }
};

}  // namespace tokcore::cpu::TOKCORE_ISA

#if defined(__AMX_BF16__)
#include "tokcore/cpu/block_product_amx.h"
#include "tokcore/cpu/block_product_split.h"
#endif

namespace tokcore::cpu::TOKCORE_ISA {

// Elements between the rows of a packed row operand: an odd number of steps, so that the 16 rows of a tile never fall
// into one another's cache sets (rows 2 KB apart cost a fifth of the speed).
inline int64_t row_operand_stride(int64_t size) { return (ceil_div(size, kBlock) | 1) * kBlock; }

// How many row blocks a kernel should walk at a time, so that they stay in L2 while panels stream by: a power of two.
template <class Engine>
int64_t row_blocks_in_l2(int64_t size, int64_t most) {
  constexpr int64_t kBytes = 5 << 18;  // of the 2 MB that cores with AMX have; panels and tiles want the rest
  const int64_t block_bytes =
      kBlock * row_operand_stride(size) * static_cast<int64_t>(sizeof(typename Engine::Operand));
  int64_t blocks = most;
  while (blocks > 2 && blocks * block_bytes > kBytes) blocks /= 2;
  return blocks;
}

// Several row blocks against one panel: outs[i] (+)= rows[i] * panel, each out a dense 32 x 32 tile.
// K is cut into passes whose part of the panel (32 KB) stays in L1 while the row blocks stream from L2; sums go back to
// the out tiles between passes. `backwards` walks the passes from the end, so that a following call on the same panel
// starts with the part that is still in L1. A row's sum depends on `backwards` alone, not on the blocks beside it.
template <class Engine, class Step>
void multiply_blocks(const RowOperand<typename Engine::Operand>* rows, float* const* outs, int num_blocks,
                     const typename Engine::Operand* panel, StepList steps, bool accumulate, bool backwards,
                     Step&& step) {
  const int num_passes = static_cast<int>(max(ceil_div(steps.count, Engine::kStepsPerPass), 1));
  for (int i = 0; i < num_passes; ++i) {
    const int pass = backwards ? num_passes - 1 - i : i;
    const int begin = steps.count * pass / num_passes;
    const int end = steps.count * (pass + 1) / num_passes;
    const StepList part = {steps.steps, steps.first + begin, end - begin, steps.compact};
    for (int block = 0; block < num_blocks; ++block) {
      Engine::multiply(rows[block], panel, part, accumulate || i > 0, outs[block], step);
    }
  }
}

// The engine that computes with numbers of type T at this level.
template <class T>
struct EngineOf {
#if defined(__AMX_BF16__)
  using type = SplitEngine;
#else
  using type = FmaEngine;
#endif
};
#if defined(__AMX_BF16__)
template <>
struct EngineOf<BFloat16> {
  using type = AmxEngine;
};
#endif

}  // namespace tokcore::cpu::TOKCORE_ISA
