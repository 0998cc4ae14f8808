// The draft builders on CUDA. What the tensors say is read on the device alone: nothing waits for the GPU.
//
// What the CPU would raise for cannot be reported without waiting. A request whose values are out of range gets an
// empty tree, count 0; all requests do where the template is none. Updates leave out rows whose token is no token.
#pragma once

#include <cstddef>

#include "tokcore/cuda/stream.h"
#include "tokcore/speculative/draft_candidates.h"
#include "tokcore/speculative/draft_heap.h"
#include "tokcore/speculative/draft_ngram.h"
#include "tokcore/speculative/draft_recycling.h"
#include "tokcore/speculative/draft_trigram.h"

namespace tokcore {

void run_draft_candidates_cuda(const DraftCandidatesParams& params, cuda::Stream stream);

void run_draft_recycling_cuda(const DraftRecyclingParams& params, cuda::Stream stream);
// Bytes of device memory: 4 for each token of the table.
size_t draft_recycling_update_workspace_cuda(const DraftRecyclingUpdateParams& params);
void run_draft_recycling_update_cuda(const DraftRecyclingUpdateParams& params, void* workspace, cuda::Stream stream);

void run_draft_ngram_cuda(const DraftNgramParams& params, cuda::Stream stream);

void run_draft_heap_cuda(const DraftHeapParams& params, cuda::Stream stream);

// Bytes of device memory: edges and slots, which the params need not have.
size_t draft_trigram_workspace_cuda(const DraftTrigramParams& params);
void run_draft_trigram_cuda(const DraftTrigramParams& params, void* workspace, cuda::Stream stream);
// Bytes of device memory: 4 for each slot of the table.
size_t draft_trigram_update_workspace_cuda(const DraftTrigramUpdateParams& params);
void run_draft_trigram_update_cuda(const DraftTrigramUpdateParams& params, void* workspace, cuda::Stream stream);

}  // namespace tokcore
