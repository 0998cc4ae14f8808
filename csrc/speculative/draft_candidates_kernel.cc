// draft_candidates: one sweep of a row for its greatest logits, a second one, from the cache, for their softmax.
// Compiled once per instruction-set level.
#include "tokcore/speculative/draft_candidates.h"

#include "tokcore/cpu/row_softmax.h"
#include "tokcore/cpu/topk.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

constexpr int kTogether = 4;  // vectors between two decisions: most hold no candidate

template <class T>
class CandidatesOfRow {
 public:
  CandidatesOfRow(const DraftCandidatesParams& params, int64_t row)
      : p_(params), row_(row), logits_(static_cast<const T*>(params.logits) + row * params.stride_row) {}

  void run() {
    rank();
    int32_t* tokens = p_.tokens + row_ * p_.k;
    for (int64_t i = 0; i < p_.k; ++i) {
      const bool proposed = !has_nan_ && keys_[i] != 0 && value_of(keys_[i]) > -__builtin_inff();
      tokens[i] = proposed ? static_cast<int32_t>(index_of(keys_[i])) : -1;
    }
    if (p_.probs != nullptr) weigh(tokens, p_.probs + row_ * p_.k);
  }

 private:
  static constexpr int64_t kStep = int64_t{kTogether} * Vec::kLanes;

  // The vectors at `begin`; beyond the row stands -inf.
  struct Piece {
    Vec vec[kTogether];
  };
  Piece piece(int64_t begin) const {
    Piece result;
    if (begin + kStep <= p_.vocab_size) {
      for (int i = 0; i < kTogether; ++i) result.vec[i] = Vec::load(logits_ + begin + i * Vec::kLanes);
      return result;
    }
    float padded[kStep];
    for (int64_t i = 0; i < kStep; ++i) {
      padded[i] = begin + i < p_.vocab_size ? to_float(logits_[begin + i]) : -__builtin_inff();
    }
    for (int i = 0; i < kTogether; ++i) result.vec[i] = Vec::load(padded + i * Vec::kLanes);
    return result;
  }

  void rank() {
    float threshold = -__builtin_inff();
    for (int64_t begin = 0; begin < p_.vocab_size; begin += kStep) {
      const Piece logits = piece(begin);
      const Vec bound(threshold);
      uint32_t reached = 0;
      for (int i = 0; i < kTogether; ++i) reached |= not_less(logits.vec[i], bound).to_bits();
      if (reached == 0) continue;
      for (int i = 0; i < kTogether; ++i) {
        uint32_t candidates = not_less(logits.vec[i], bound).to_bits();
        if (candidates == 0) continue;
        float values[Vec::kLanes];
        logits.vec[i].store(values);
        for (; candidates != 0; candidates &= candidates - 1) {
          const int lane = __builtin_ctz(candidates);
          const int64_t token = begin + i * Vec::kLanes + lane;
          if (token >= p_.vocab_size) break;
          has_nan_ |= values[lane] != values[lane];
          insert_ranked(keys_, p_.k, rank_key(values[lane], static_cast<uint32_t>(token)));
        }
      }
      if (keys_[p_.k - 1] != 0) threshold = value_of(keys_[p_.k - 1]);
      if (has_nan_) return;  // such a row proposes nothing
    }
  }

  void weigh(const int32_t* tokens, float* probs) const {
    if (has_nan_ || tokens[0] < 0) {
      const float value = has_nan_ ? __builtin_nanf("") : 0.0f;
      for (int64_t i = 0; i < p_.k; ++i) probs[i] = value;
      return;
    }
    const float maximum = value_of(keys_[0]), warmth = 1.0f / p_.temperature;
    const Vec shift(maximum), factor(warmth);
    Vec totals[kTogether];
    for (Vec& total : totals) total = Vec(0.0f);
    for (int64_t begin = 0; begin < p_.vocab_size; begin += kStep) {
      const Piece logits = piece(begin);
      for (int i = 0; i < kTogether; ++i) totals[i] += exp((logits.vec[i] - shift) * factor);
    }
    const float total = sum_of_lanes((totals[0] + totals[1]) + (totals[2] + totals[3]));
    for (int64_t i = 0; i < p_.k; ++i) {
      probs[i] = tokens[i] < 0 ? 0.0f : exp_of((value_of(keys_[i]) - maximum) * warmth) / total;
    }
  }

  const DraftCandidatesParams& p_;
  int64_t row_;
  const T* logits_;
  bool has_nan_ = false;
  RankKey keys_[kMostDraftCandidates] = {};
};

}  // namespace

void draft_candidates(const DraftCandidatesParams& params, const Threads& threads) {
  with_dtype(params.dtype, [&](auto element) {
    using T = decltype(element);
    for_each_item(threads, params.num_rows, [&](int64_t row, int) { CandidatesOfRow<T>(params, row).run(); });
  });
}

}  // namespace tokcore::cpu::TOKCORE_ISA
