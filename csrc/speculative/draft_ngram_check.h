// The checks of draft_ngram, its outputs and its params struct, for both backends; values stay unread.
#pragma once

#include "speculative/draft_check.h"
#include "tokcore/speculative/draft_ngram.h"

namespace tokcore::speculative {

// Arguments in, kernel's params and results out; alive while the kernel runs.
class NgramCall {
 public:
  NgramCall(const Tensor& history, const Tensor& lengths, const Tensor& budgets, int64_t max_nodes, int64_t longest,
            int64_t shortest, int64_t max_depth)
      : history_(checked(history, lengths, budgets, max_nodes, longest, shortest, max_depth)),
        lengths_(torch::stable::contiguous(lengths)),
        budgets_(torch::stable::contiguous(budgets)),
        made_(empty_trees(history, history.size(0), max_nodes)),
        params({.history = core::data_of<int64_t>(history_),
                .lengths = core::data_of<int32_t>(lengths_),
                .budgets = core::data_of<int32_t>(budgets_),
                .num_requests = history.size(0),
                .row_length = history.size(1),
                .longest = longest,
                .shortest = shortest,
                .max_depth = max_depth,
                .trees = made_.trees}) {}
  std::tuple<Tensor, Tensor, Tensor> result() const { return {made_.parents, made_.tokens, made_.counts}; }

  const Checker check{"draft_ngram"};

 private:
  Tensor checked(const Tensor& history, const Tensor& lengths, const Tensor& budgets, int64_t max_nodes,
                 int64_t longest, int64_t shortest, int64_t max_depth) const {
    check_tensors(check, {{history, "history", ScalarType::Long, 2},
                          {lengths, "lengths", ScalarType::Int, 1},
                          {budgets, "budgets", ScalarType::Int, 1}});
    check.shape(lengths, "lengths", {history.size(0)}, "B of history");
    check.shape(budgets, "budgets", {history.size(0)}, "B of history");
    check_max_nodes(check, max_nodes);
    check_range(check, "longest", longest, 1, 64, "tokens");
    check_range(check, "shortest", shortest, 1, longest, "longest");
    check_range(check, "max_depth", max_depth, 1, kMostDraftNodes, "tokens");
    return torch::stable::contiguous(history);
  }

  Tensor history_, lengths_, budgets_;
  TreeTensors made_;

 public:
  const DraftNgramParams params;
};

}  // namespace tokcore::speculative
