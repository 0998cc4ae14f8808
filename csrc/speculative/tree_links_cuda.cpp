// Torch-facing CUDA entry of tree_links. Values of parents and counts are not looked at before: that would wait for the
// GPU.
#include <torch/csrc/stable/library.h>

#include "core/cuda_scope.h"
#include "speculative/tree_links_check.h"
#include "tokcore/speculative/sampling_cuda.h"

namespace tokcore::speculative {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> tree_links(const Tensor& parents, const Tensor& counts) {
  const Checker check("tree_links");
  check_trees(check, parents, counts);
  const core::CudaScope scope("tree_links", parents);
  const int64_t B = parents.size(0), N = parents.size(1);
  const Tensor dense_parents = torch::stable::contiguous(parents), dense_counts = torch::stable::contiguous(counts);
  const Tensor ancestors = core::empty_like_on(parents, {B, N, tree_words(N)}, ScalarType::Long);
  const Tensor depths = core::empty_like_on(parents, {B, N}, ScalarType::Int);
  const Tensor first_child = core::empty_like_on(parents, {B, N}, ScalarType::Int);
  const Tensor next_sibling = core::empty_like_on(parents, {B, N}, ScalarType::Int);
  TreeLinksParams params = {};
  params.parents = core::data_of<int32_t>(dense_parents);
  params.counts = core::data_of<int32_t>(dense_counts);
  params.num_trees = B;
  params.num_nodes = N;
  params.ancestors = static_cast<uint64_t*>(ancestors.mutable_data_ptr());
  params.depths = core::mutable_data_of<int32_t>(depths);
  params.first_child = core::mutable_data_of<int32_t>(first_child);
  params.next_sibling = core::mutable_data_of<int32_t>(next_sibling);
  run_tree_links_cuda(params, scope.stream());
  return {ancestors, depths, first_child, next_sibling};
}

}  // namespace
}  // namespace tokcore::speculative

STABLE_TORCH_LIBRARY_IMPL(tokcore, CUDA, m) { m.impl("tree_links", TORCH_BOX(&tokcore::speculative::tree_links)); }
