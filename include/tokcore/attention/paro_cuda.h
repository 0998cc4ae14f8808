// PARO attention on CUDA: the params of attention/paro.h with addresses on the device, but for the permutation, which
// is read on the host. Operands have the layouts and, up to the codes and scales, the bits of the CPU's. Nothing here
// waits for the GPU, and everything can be captured into a graph.
#pragma once

#include <cstddef>

#include "tokcore/attention/paro.h"
#include "tokcore/cuda/machine.h"

namespace tokcore {

inline constexpr int64_t kMostParoKeyHeadsCuda = 1024;  // Hkv: the codes of all key heads are part of a launch

size_t paro_prepare_workspace_cuda(const ParoPrepareParams& params, const CudaMachine& machine);
void run_paro_prepare_cuda(const ParoPrepareParams& params, const CudaCall& call);

size_t paro_attention_workspace_cuda(const ParoAttentionParams& params, const CudaMachine& machine);
void run_paro_attention_cuda(const ParoAttentionParams& params, const CudaCall& call);

}  // namespace tokcore
