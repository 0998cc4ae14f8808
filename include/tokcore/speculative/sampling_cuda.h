// What the torch-facing CUDA entries of sample, draft_samples, verify_tree and tree_links call.
#pragma once

#include <cstddef>

#include "tokcore/cuda/stream.h"
#include "tokcore/speculative/draft_samples.h"
#include "tokcore/speculative/sample.h"
#include "tokcore/speculative/tree_links.h"
#include "tokcore/speculative/verify_tree.h"

namespace tokcore {

void run_draft_samples_cuda(const DraftSamplesParams& params, cuda::Stream stream);
void run_sample_cuda(const SampleParams& params, cuda::Stream stream);

// Bytes of device memory: 72 for each node where rows are read at once, none otherwise.
size_t verify_tree_workspace_cuda(const VerifyTreeParams& params);
void run_verify_tree_cuda(const VerifyTreeParams& params, void* workspace, cuda::Stream stream);

// Links of parents that are no tree name nodes of it all the same.
void run_tree_links_cuda(const TreeLinksParams& params, cuda::Stream stream);

}  // namespace tokcore
