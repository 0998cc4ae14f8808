#include "vocabulary.h"

#include <type_traits>

#include "tokcore/cpu/block_product.h"
#include "tokcore/cpu/block_product_int8.h"
#include "tokcore/cpu/math.h"
#include "tokcore/cpu/online_softmax.h"
#include "tokcore/cpu/scratch.h"

namespace tokcore::cpu::TOKCORE_ISA::testing {

TOKCORE_TESTING_FUNCTIONS;

using namespace ::tokcore::cpu::TOKCORE_ISA;
using ::tokcore::testing::BlockProduct;
using ::tokcore::testing::Function;

namespace {

template <class T>
void round_trip_as(const float* in, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    T narrow[Vec::kLanes];
    Vec::load(in + i).store(narrow);
    Vec::load(narrow).store(out + i);
    for (int lane = 0; lane < Vec::kLanes; ++lane) {
      T scalar;
      from_float(in[i + lane], &scalar);
      const bool same = __builtin_memcmp(&scalar, narrow + lane, sizeof(T)) == 0;
      if (!same && in[i + lane] == in[i + lane]) out[i + lane] = __builtin_nanf("");  // the two paths must agree
    }
  }
}

template <class Engine>
void multiply(const BlockProduct& product) {
  using Operand = typename Engine::Operand;
  using Narrow = std::conditional_t<std::is_same_v<Operand, BFloat16>, BFloat16, float>;
  [[maybe_unused]] typename Engine::WorkerState state;
  const int64_t size = product.size, padded = round_up(size, kBlock), stride = row_operand_stride(size);
  Scratch scratch(static_cast<size_t>(8 * kBlock * stride * 4));
  Arena arena(scratch.data());
  Narrow* narrow_a = arena.take<Narrow>(kBlock * size);
  Narrow* narrow_b = arena.take<Narrow>(kBlock * size);
  Operand* packed_a = arena.take<Operand>(kBlock * stride);
  Operand* panel = arena.take<Operand>(kBlock * padded);
  const Narrow** rows = arena.take<const Narrow*>(max(size, kBlock));
  for (int64_t i = 0; i < kBlock * size; ++i) from_float(product.a[i], narrow_a + i);
  for (int64_t i = 0; i < kBlock; ++i) {
    for (int64_t k = 0; k < size; ++k) {
      from_float(product.b[i * size + k], narrow_b + (product.through_columns ? k * kBlock + i : i * size + k));
    }
  }
  Engine::pack_rows(narrow_a, size, kBlock, size, packed_a, stride);
  if (product.through_columns) {
    for (int64_t k = 0; k < size; ++k) rows[k] = narrow_b + k * kBlock;
    Engine::pack_columns(rows, size, 0, kBlock, panel);
  } else {
    for (int64_t i = 0; i < kBlock; ++i) rows[i] = narrow_b + i * size;
    Engine::pack_transposed(rows, size, panel);
  }
  const RowOperand<Operand> operand = {packed_a, stride};
  const int num_steps = static_cast<int>(product.steps == nullptr ? padded / kBlock : product.num_steps);
  float* out = product.out;
  multiply_blocks<Engine>(&operand, &out, 1, panel, {product.steps, 0, num_steps}, true, product.backwards, NoStep());
}

}  // namespace

void apply(Function function, const float* in, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    const Vec x = Vec::load(in + i);
    (function == Function::kExp ? exp(x) : tanh(x)).store(out + i);
  }
}

void round_trip(int dtype, const float* in, float* out, int64_t count) {
  dtype == static_cast<int>(DType::kBFloat16) ? round_trip_as<BFloat16>(in, out, count)
                                              : round_trip_as<Float16>(in, out, count);
}

void upper_bound(const float* in, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    uint16_t upper[Vec::kLanes];
    store_upper_bound(Vec::load(in + i), upper);
    Vec::load(reinterpret_cast<const BFloat16*>(upper)).store(out + i);
  }
}

void transpose_block(const float* in, float* out) {
  FmaEngine::store_transposed_half(in, out, kBlock);
  FmaEngine::store_transposed_half(in + kBlock / 2, out + kBlock / 2 * kBlock, kBlock);
}

void multiply_fma(const BlockProduct& product) { multiply<FmaEngine>(product); }

bool multiply_split([[maybe_unused]] const BlockProduct& product) {
#if defined(__AMX_BF16__)
  multiply<SplitEngine>(product);
  return true;
#else
  return false;
#endif
}

bool multiply_bfloat16([[maybe_unused]] const BlockProduct& product) {
#if defined(__AMX_BF16__)
  multiply<AmxEngine>(product);
  return true;
#else
  return false;
#endif
}

void multiply_int8(const ::tokcore::testing::Int8Product& product) {
#if defined(__AMX_BF16__)
  TileState state;
#endif
  const int64_t padded = round_up(product.size, kInt8Step);
  Scratch scratch(static_cast<size_t>(kBlock * padded + int8_panel_bytes(product.size) + 128));
  Arena arena(scratch.data());
  int8_t* a = arena.take<int8_t>(kBlock * padded);
  int8_t* panel = arena.take<int8_t>(int8_panel_bytes(product.size));
  const int8_t* rows[kBlock];
  for (int64_t i = 0; i < kBlock; ++i) {
    rows[i] = product.b + i * product.size;
    for (int64_t k = 0; k < padded; ++k) a[i * padded + k] = k < product.size ? product.a[i * product.size + k] : 0;
  }
  pack_transposed_int8(rows, product.size, panel);
  ::tokcore::cpu::TOKCORE_ISA::multiply_int8(a, padded, panel, padded / kInt8Step, true, product.out);
}

void online_softmax(const ::tokcore::testing::OnlineSoftmax& softmax) {
  constexpr int64_t kLanes = 16;
  for (int64_t lane = 0; lane < kLanes; lane += Vec::kLanes) {
    SoftmaxState halves[2];
    for (int64_t i = 0; i < softmax.num_logits; ++i) {
      SoftmaxState& state = halves[i < softmax.num_logits / 2 ? 0 : 1];
      const Vec z = Vec::load(softmax.logits + i * kLanes + lane);
      state.raise_maximum(z);
      state.add_with_entropy(z);
    }
    halves[0].merge(halves[1]);
    float maximum[Vec::kLanes], sum[Vec::kLanes], weighted[Vec::kLanes];
    halves[0].maximum.store(maximum);
    halves[0].sum.store(sum);
    halves[0].weighted.store(weighted);
    for (int i = 0; i < Vec::kLanes; ++i) {
      const float log_sum = static_cast<float>(__builtin_log(static_cast<double>(sum[i])));
      softmax.lse[lane + i] = maximum[i] + log_sum;
      softmax.entropy[lane + i] = log_sum - weighted[i] / sum[i];
    }
  }
}

}  // namespace tokcore::cpu::TOKCORE_ISA::testing
