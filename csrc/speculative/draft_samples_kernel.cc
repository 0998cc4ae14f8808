// draft_samples: rows are items of work. Compiled once per instruction-set level.
#include "tokcore/speculative/draft_samples.h"

#include "tokcore/cpu/scratch.h"
#include "tokcore/speculative/sampling_row.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

using speculative::NoisyTokens;
using speculative::Stream;

template <class T>
void draw_children(const DraftSamplesParams& p, int64_t index, RowScratch& scratch) {
  int32_t* status = p.status + 2 * index;
  int32_t* tokens = p.tokens + index * p.k;
  float* probs = p.probs + index * p.k;
  float* q = p.draft_probs == nullptr ? nullptr : p.draft_probs + index * p.vocab_size;
  for (int64_t i = 0; i < p.k; ++i) {
    tokens[i] = -1;
    probs[i] = 0.0f;
  }
  status[0] = speculative::check_settings(p, index);
  status[1] = 0;
  SamplingRow<T> row(p, nullptr, index, scratch);
  if (status[0] == speculative::kFine) status[0] = row.open(0, true).status;
  if (status[0] != speculative::kFine) {
    for (int64_t v = 0; q != nullptr && v < p.vocab_size; ++v) q[v] = 0.0f;
    return;
  }

  const int64_t position = p.positions[index];
  const double mass = speculative::as_double(row.summary().mass);
  const auto keep = [&](const NoisyTokens& best, int64_t first) {
    for (int64_t i = 0; i < best.count(); ++i) {
      const int64_t token = best.token(i);
      tokens[first + i] = static_cast<int32_t>(token);
      probs[first + i] = q != nullptr ? q[token] : static_cast<float>(speculative::as_double(row.weight(token)) / mass);
    }
  };
  if (q != nullptr) row.write_draft(q);
  if (p.children == DraftChildren::kIid) {
    for (int64_t i = 0; i < p.k; ++i) {
      NoisyTokens one(1);
      row.rank_draft_with_noise(q, static_cast<Stream>(static_cast<int64_t>(Stream::kDrafts) + i), position, one);
      keep(one, i);
    }
    return;
  }
  NoisyTokens best(p.k);
  if (p.children == DraftChildren::kCoupled) {
    row.rank_with_noise(position, best);
  } else {
    row.rank_draft_with_noise(q, Stream::kDrafts, position, best);
  }
  keep(best, 0);
}

}  // namespace

void draft_samples(const DraftSamplesParams& params, const Threads& threads) {
  const ScratchPerThread scratch(threads.count, sizeof(RowScratch));
  with_dtype(params.dtype, [&](auto element) {
    for_each_item(threads, params.num_requests, [&](int64_t index, int worker) {
      draw_children<decltype(element)>(params, index, *reinterpret_cast<RowScratch*>(scratch[worker]));
    });
  });
}

}  // namespace tokcore::cpu::TOKCORE_ISA
