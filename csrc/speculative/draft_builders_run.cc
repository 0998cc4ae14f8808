// The builders on the CPU, a request an item of work. Integers and a few fp64 operations on small tables: one build
// serves every instruction-set level.
#include "tokcore/speculative/draft_heap.h"
#include "tokcore/speculative/draft_ngram.h"
#include "tokcore/speculative/draft_recycling.h"
#include "tokcore/speculative/draft_trigram.h"

namespace tokcore {

void run_draft_recycling_cpu(const DraftRecyclingParams& params, const cpu::Threads& threads) {
  cpu::for_each_item(threads, params.num_requests, [&](int64_t b, int) { draft_recycling_request(params, b); });
}

void run_draft_recycling_update_cpu(const DraftRecyclingUpdateParams& params) { draft_recycling_update_rows(params); }

void run_draft_ngram_cpu(const DraftNgramParams& params, const cpu::Threads& threads) {
  cpu::for_each_item(threads, params.num_requests, [&](int64_t b, int) { draft_ngram_request(params, b); });
}

void run_draft_heap_cpu(const DraftHeapParams& params, const cpu::Threads& threads) {
  cpu::for_each_item(threads, params.num_requests, [&](int64_t b, int) { DraftHeapRequest(params, b).run(); });
}

void run_draft_trigram_cpu(const DraftTrigramParams& params, const cpu::Threads& threads) {
  cpu::for_each_item(threads, params.num_requests, [&](int64_t b, int) { DraftTrigramRequest(params, b).run(); });
}

void run_draft_trigram_update_cpu(const DraftTrigramUpdateParams& params) { draft_trigram_update_rows(params); }

}  // namespace tokcore
