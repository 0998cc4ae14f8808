// k tokens drawn from each row of logits for the children of a node: with the target's noise, one after the other
// without replacement, or independently.
//
// Letters: R rows, V vocabulary, K tokens of a row.
#pragma once

#include "tokcore/cpu/threads.h"
#include "tokcore/speculative/sampling.h"

namespace tokcore {

inline constexpr int64_t kMostDraftSamples = 64;

enum class DraftChildren : int32_t {
  kCoupled,             // the k greatest of log q + noise, the noise that sample draws with
  kWithoutReplacement,  // the same with the drafter's own noise: draws from q one after the other, none twice
  kIid,                 // k draws from q, each with noise of its own
};

// status: [R, 2].
struct DraftSamplesParams : speculative::LogitsParams {
  DraftChildren children;
  int64_t k;
  int32_t* tokens;     // [R, K] in the order of drawing; -1 where nothing is left to draw or the status says why
  float* probs;        // [R, K] q of each, 0 beside -1
  float* draft_probs;  // [R, V] q as drawn from; null with kCoupled, where no verification reads it
};

namespace speculative {

// The tokens of greatest score so far, best first; of equal scores the one that came first.
class NoisyTokens {
 public:
  explicit NoisyTokens(int64_t k) : k_(k) {}

  int64_t count() const { return count_; }
  int64_t token(int64_t i) const { return tokens_[i]; }
  double least() const { return least_; }  // what a score must exceed
  void offer(double score, int64_t token) {
    if (!(score > least_)) return;
    int64_t at = count_ < k_ ? count_++ : k_ - 1;
    for (; at > 0 && score > scores_[at - 1]; --at) {
      scores_[at] = scores_[at - 1];
      tokens_[at] = tokens_[at - 1];
    }
    scores_[at] = score;
    tokens_[at] = token;
    if (count_ == k_) least_ = scores_[count_ - 1];
  }

 private:
  int64_t k_, count_ = 0;
  double least_ = -__builtin_inf();
  double scores_[kMostDraftSamples];
  int64_t tokens_[kMostDraftSamples];
};

}  // namespace speculative

void run_draft_samples_cpu(const DraftSamplesParams& params, const cpu::Threads& threads);

}  // namespace tokcore
