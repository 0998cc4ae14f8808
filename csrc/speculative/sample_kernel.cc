// sample: rows are items of work. Compiled once per instruction-set level.
#include "tokcore/speculative/sample.h"

#include "tokcore/cpu/scratch.h"
#include "tokcore/speculative/sampling_row.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

template <class T>
void sample_row(const SampleParams& p, int64_t request, RowScratch& scratch) {
  int32_t* status = p.status + 2 * request;
  status[0] = speculative::check_settings(p, request);
  status[1] = 0;
  p.tokens[request] = -1;
  p.logprobs[request] = NAN;
  if (p.wants_entropy) p.entropies[request] = p.varentropies[request] = NAN;
  if (status[0] != speculative::kFine) return;

  SamplingRow<T> row(p, nullptr, request, scratch);
  const RowSummary& summary = row.open(0, true);
  status[0] = summary.status;
  if (status[0] != speculative::kFine) return;
  const int64_t token = row.coupled_token(p.positions[request]);
  const double y = row.is_greedy() ? 0.0 : speculative::log2_weight(row.logit(token), summary.greatest, summary.slope);
  p.tokens[request] = token;
  p.logprobs[request] = speculative::logprob_of(summary, y, row.weight_bits());
  if (!p.wants_entropy) return;
  p.entropies[request] = static_cast<float>(speculative::entropy_of(summary, row.weight_bits()));
  p.varentropies[request] = static_cast<float>(speculative::varentropy_of(summary));
}

}  // namespace

void sample(const SampleParams& params, const Threads& threads) {
  const ScratchPerThread scratch(threads.count, sizeof(RowScratch));
  with_dtype(params.dtype, [&](auto element) {
    for_each_item(threads, params.num_requests, [&](int64_t request, int worker) {
      sample_row<decltype(element)>(params, request, *reinterpret_cast<RowScratch*>(scratch[worker]));
    });
  });
}

}  // namespace tokcore::cpu::TOKCORE_ISA
