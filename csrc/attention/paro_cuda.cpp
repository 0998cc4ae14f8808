// Torch-facing CUDA entries of paro_prepare and paro_attention. Nothing waits for the GPU.
#include <torch/csrc/stable/library.h>

#include "attention/paro_check.h"
#include "core/cuda_scope.h"
#include "tokcore/attention/paro_cuda.h"

namespace tokcore::attention {
namespace {

void check_key_heads(const Checker& check, const char* argument, int64_t num_kv_heads) {
  check.require(num_kv_heads <= kMostParoKeyHeadsCuda, argument,
                "at most " + std::to_string(kMostParoKeyHeadsCuda) + " key heads on CUDA", num_kv_heads);
}

Prepared paro_prepare(const Tensor& q, const Tensor& k, const Tensor& v, std::vector<int64_t> permutation,
                      std::vector<int64_t> grid, std::vector<int64_t> text, std::optional<Tensor> rope_cos,
                      std::optional<Tensor> rope_sin, std::string rope_pairs, std::string qk, std::string pv,
                      bool smooth_k, bool need_lse) {
  const Checker check("paro_prepare");
  ParoPrepareParams params = {};
  check_prepare(check, q, k, v, {permutation, grid, text, rope_cos, rope_sin, rope_pairs, qk, pv}, params);
  check_key_heads(check, "k", params.shape.num_kv_heads);
  const core::CudaScope scope("paro_prepare", q);
  const PreparedTensors made(q, params, smooth_k, smooth_k && need_lse);
  if (q.numel() > 0) {
    const RotationTables tables(params, rope_cos, rope_sin, rope_pairs == "interleaved");
    made.fill(params);
    const CudaMachine machine = scope.machine();
    const Tensor workspace = core::workspace_like(q, paro_prepare_workspace_cuda(params, machine));
    run_paro_prepare_cuda(params, {machine, workspace.mutable_data_ptr(), scope.stream()});
  }
  return made.all();
}

}  // namespace
}  // namespace tokcore::attention

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) { m.impl("paro_prepare", TORCH_BOX(&tokcore::attention::paro_prepare)); }
