// The launchers that the torch-facing entries call: by element type. Included once by a .cu file, and once by the tests
// for the execution on the CPU.
#pragma once

#include "cross_entropy/linear_cross_entropy_chunked_cuda.cuh"
#include "cross_entropy/linear_logprobs_run_backward_cuda.cuh"

namespace tokcore {
namespace cross_entropy {

// Calls visit with a value of the element type.
template <class Visit>
auto with_element(DType dtype, Visit&& visit) {
  switch (dtype) {
    case DType::kFloat32:
      return visit(float{});
    case DType::kFloat16:
      return visit(Float16{});
    default:
      return visit(BFloat16{});
  }
}

// Calls visit with the element type and the kernels that serve the call best. TMA, of which Hopper's kernels are made,
// copies 16-bit elements in whole rows: rows that it cannot address, fp32, and the rows that the filter leaves are for
// the portable kernels.
template <class Visit>
auto with_kernels(const LinearLogitsParams& params, const CudaMachine& machine, bool gathers_rows, Visit&& visit) {
  return with_element(params.dtype, [&]<class T>(T) {
    if constexpr (sizeof(T) == 2) {
      if (machine.capability == 90 && !gathers_rows && has_aligned_rows<T>(params)) {
        return visit(T{}, KernelsSm90<T>());
      }
    }
    return visit(T{}, KernelsSm80<T>());
  });
}

// Vocabulary tiles of a chunk: as many as the bound allows, at least one.
template <class T, class Kernels>
int64_t chunk_tiles_within(const LinearLogprobsBackwardParams& params, const CudaMachine& machine) {
  const int64_t padded = round_up(params.num_positions, kRowTile);
  const int64_t most =
      default_chunk_tiles(padded, static_cast<int64_t>(sizeof(T)), params.vocab_size, params.kept != nullptr);
  if (params.workspace_bytes == 0) return most;
  const auto fits = [&](int64_t tiles) {
    return LogprobsBackward<T, Kernels>(params, machine, tiles, nullptr).workspace() <=
           static_cast<size_t>(params.workspace_bytes);
  };
  int64_t chosen = 1, too_many = most + 1;
  while (too_many - chosen > 1) {
    const int64_t middle = (chosen + too_many) / 2;
    (fits(middle) ? chosen : too_many) = middle;
  }
  return chosen;
}

}  // namespace cross_entropy

size_t linear_logprobs_forward_workspace_cuda(const LinearLogprobsForwardParams& params, const CudaMachine& machine) {
  using namespace cross_entropy;
  return with_kernels(params, machine, false, [&]<class T, class Kernels>(T, Kernels) {
    return LogprobsForward<T, Kernels>(params, machine, nullptr).workspace();
  });
}

void run_linear_logprobs_forward_cuda(const LinearLogprobsForwardParams& params, const ActiveRule& rule,
                                      const CudaCall& call) {
  using namespace cross_entropy;
  with_kernels(params, call.machine, false, [&]<class T, class Kernels>(T, Kernels) {
    LogprobsForward<T, Kernels>(params, call.machine, call.workspace).run(rule, call.stream);
  });
}

size_t linear_logprobs_backward_workspace_cuda(const LinearLogprobsBackwardParams& params, const CudaMachine& machine) {
  using namespace cross_entropy;
  return with_kernels(params, machine, params.kept != nullptr, [&]<class T, class Kernels>(T, Kernels) {
    const int64_t tiles = chunk_tiles_within<T, Kernels>(params, machine);
    return LogprobsBackward<T, Kernels>(params, machine, tiles, nullptr).workspace();
  });
}

int64_t least_backward_workspace_cuda(const LinearLogprobsBackwardParams& params, const CudaMachine& machine) {
  using namespace cross_entropy;
  return with_kernels(params, machine, params.kept != nullptr, [&]<class T, class Kernels>(T, Kernels) {
    return static_cast<int64_t>(LogprobsBackward<T, Kernels>(params, machine, 1, nullptr).workspace());
  });
}

void run_linear_logprobs_backward_cuda(const LinearLogprobsBackwardParams& params, const ActiveRule& rule,
                                       const CudaCall& call) {
  using namespace cross_entropy;
  with_kernels(params, call.machine, params.kept != nullptr, [&]<class T, class Kernels>(T, Kernels) {
    const int64_t tiles = chunk_tiles_within<T, Kernels>(params, call.machine);
    LogprobsBackward<T, Kernels>(params, call.machine, tiles, call.workspace).run(rule, call.stream);
  });
}

size_t linear_cross_entropy_chunked_workspace_cuda(const LinearCrossEntropyChunkedParams& params,
                                                   const CudaMachine& machine) {
  using namespace cross_entropy;
  return with_kernels(params, machine, false, [&]<class T, class Kernels>(T, Kernels) {
    return ChunkedLoss<T, Kernels>(params, machine, nullptr).workspace();
  });
}

void run_linear_cross_entropy_chunked_cuda(const LinearCrossEntropyChunkedParams& params, const ActiveRule& rule,
                                           float* loss, const CudaCall& call) {
  using namespace cross_entropy;
  with_kernels(params, call.machine, false, [&]<class T, class Kernels>(T, Kernels) {
    ChunkedLoss<T, Kernels>(params, call.machine, call.workspace).run(rule, loss, call.stream);
  });
}

}  // namespace tokcore
