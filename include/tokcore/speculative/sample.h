// One token for each row of logits, by Gumbel noise from (seed, position, token).
#pragma once

#include "tokcore/cpu/threads.h"
#include "tokcore/speculative/sampling.h"

namespace tokcore {

struct SampleParams : speculative::LogitsParams {
  bool wants_entropy;
  int64_t* tokens;      // [B]; -1 where the status says why
  float* logprobs;      // [B]
  float* entropies;     // [B] or null
  float* varentropies;  // [B] or null
};

void run_sample_cpu(const SampleParams& params, const cpu::Threads& threads);

}  // namespace tokcore
