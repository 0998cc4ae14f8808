// What a row of logits proposes: its k greatest tokens and their probabilities.
//
// Letters: R rows, V vocabulary, K candidates of a row.
#pragma once

#include "tokcore/common/dtype.h"
#include "tokcore/cpu/threads.h"

namespace tokcore {

inline constexpr int64_t kMostDraftCandidates = 64;

struct DraftCandidatesParams {
  DType dtype;
  const void* logits;  // [R, V]
  int64_t stride_row;  // elements
  int64_t num_rows, vocab_size;
  int64_t k;
  float temperature;
  int32_t* tokens;  // [R, K] by descending logit, equal ones by token; -1 where the row has no more above -inf
  float* probs;     // [R, K] softmax(logits / temperature) there, or null: not wanted
};

void run_draft_candidates_cpu(const DraftCandidatesParams& params, const cpu::Threads& threads);

}  // namespace tokcore
