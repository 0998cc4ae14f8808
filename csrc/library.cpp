// Every op of tokcore: its schema and one line on what it is. Letters: T positions, C hidden size, V vocabulary,
// K gathered logits a position.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(tokcore, m) {
  // The instruction-set level in use, and those this machine can run.
  m.def("cpu_isa() -> str");
  m.def("cpu_isa_levels() -> str[]");

  // Each GPU as "name=…; capability=9.0; …", and the versions of the CUDA runtime and driver. In the CUDA library.
  m.def("cuda_devices() -> str[]");
  m.def("cuda_versions() -> str[]");

  // FLOP/s, OP/s or bytes/s this machine reaches at most: kind is fma_fp32, amx_bf16, amx_int8 or read.
  m.def("measure_peak(str kind, float seconds) -> float");

  // Row statistics of softmax(softcap(e c^T + bias) / temperature) without the [T, V] matrix:
  // lse [T], entropy [T], gathered logits [T, K], logit_sum [T], topk_values and topk_indices [T, topk], and the bit
  // masks of the (position, 32 vocabulary rows) pairs that the gradient filter keeps. workspace_bytes is the bound of
  // the backward to come, refused here if it is too small.
  m.def(
      "linear_logprobs_forward(Tensor e, Tensor c, Tensor indices, Tensor? bias=None, Tensor? class_weight=None, *, "
      "int? ignore_index=None, SymInt seq_len=0, int shift=0, float? softcap=None, float temperature=1.0, "
      "bool entropy=False, bool logit_sum=False, int topk=0, float? filter_eps=None, int? workspace_bytes=None) -> "
      "(Tensor lse, Tensor entropy, Tensor gathered, Tensor logit_sum, Tensor topk_values, Tensor topk_indices, "
      "Tensor kept)");

  // Gradients of any function of those statistics with respect to e, c and bias; the logits are recomputed tile by
  // tile.
  m.def(
      "linear_logprobs_backward(Tensor e, Tensor c, Tensor indices, Tensor logits, Tensor lse, Tensor kept, "
      "Tensor grad_prob, Tensor grad_logits, Tensor? grad_plogp=None, Tensor? grad_sum=None, Tensor? bias=None, "
      "Tensor? class_weight=None, *, int? ignore_index=None, SymInt seq_len=0, int shift=0, float? softcap=None, "
      "float temperature=1.0, float? filter_eps=None, int? workspace_bytes=None, bool need_e=True, bool need_c=True, "
      "bool need_bias=False) -> (Tensor grad_e, Tensor grad_c, Tensor grad_bias)");

  // loss = sum_t nll_scale_t (lse_t - z_t) + smooth_scale_t (sum_v w_v lse_t - logit_sum_t) + square_scale_t lse_t^2
  // with its gradients already made, chunk of positions by chunk whose logits lie in a workspace of at most
  // workspace_bytes.
  m.def(
      "linear_cross_entropy_chunked(Tensor e, Tensor c, Tensor targets, Tensor nll_scale, Tensor? smooth_scale=None, "
      "Tensor? square_scale=None, Tensor? bias=None, Tensor? class_weight=None, *, int? ignore_index=None, "
      "SymInt seq_len=0, int shift=0, float? softcap=None, float temperature=1.0, int workspace_bytes=67108864, "
      "bool need_e=True, bool need_c=True, bool need_bias=False) -> "
      "(Tensor loss, Tensor lse, Tensor logits, Tensor logit_sum, Tensor grad_e, Tensor grad_c, Tensor grad_bias)");
}
