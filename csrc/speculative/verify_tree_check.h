// Checks of the verify_tree ops, their outputs and their params struct, for both backends.
#pragma once

#include <limits>

#include "speculative/sampling_check.h"
#include "tokcore/speculative/tree_links.h"
#include "tokcore/speculative/verify_tree.h"

namespace tokcore::speculative {

// accepted_nodes, accepted_counts, next_token, status
using VerifyResult = std::tuple<Tensor, Tensor, Tensor, Tensor>;

struct TreeArguments {
  const Tensor& tokens;
  const Tensor& parents;
  const Tensor& counts;
  const Tensor& first_child;
  const Tensor& next_sibling;
};

// `other` [B, N, …] is what the verification goes by: logits or target tokens.
inline void check_tree(const Checker& check, const TreeArguments& tree, const Tensor& other, const char* other_name) {
  check.dtype(tree.tokens, "tokens", ScalarType::Long);
  check.dtype(tree.parents, "parents", ScalarType::Int);
  check.dtype(tree.counts, "counts", ScalarType::Int);
  check.dtype(tree.first_child, "first_child", ScalarType::Int);
  check.dtype(tree.next_sibling, "next_sibling", ScalarType::Int);
  check.same_device(tree.tokens, "tokens", other, other_name);
  check.same_device(tree.parents, "parents", other, other_name);
  check.same_device(tree.counts, "counts", other, other_name);
  check.same_device(tree.first_child, "first_child", other, other_name);
  check.same_device(tree.next_sibling, "next_sibling", other, other_name);
  const std::vector<int64_t> sizes = {other.size(0), other.size(1)};
  const std::string note = std::string("[B, N] of ") + other_name;
  check.shape(tree.tokens, "tokens", sizes, note);
  check.shape(tree.parents, "parents", sizes, note);
  check.shape(tree.counts, "counts", {other.size(0)}, std::string("B of ") + other_name);
  check.shape(tree.first_child, "first_child", sizes, note);
  check.shape(tree.next_sibling, "next_sibling", sizes, note);
  check.require(sizes[1] >= 1 && sizes[1] <= kMostTreeNodes, "tokens", "N in [1, 256]", sizes[1]);
}

inline VerifyRule to_rule(const Checker& check, const std::string& name) {
  if (name == "coupled") return VerifyRule::kCoupled;
  if (name == "without_replacement") return VerifyRule::kWithoutReplacement;
  if (name == "iid") return VerifyRule::kIid;
  if (name == "target_only") return VerifyRule::kTargetOnly;
  if (name == "typical") return VerifyRule::kTypical;
  check.fail("rule", "'coupled' or 'without_replacement' or 'iid' or 'target_only' or 'typical'", "'" + name + "'");
}

inline void check_rule(const Checker& check, VerifyRule rule, bool lossless, const std::optional<Tensor>& draft_probs,
                       const Tensor& logits, double typical_epsilon, double typical_alpha) {
  const bool against_draft = rule == VerifyRule::kIid || rule == VerifyRule::kWithoutReplacement;
  check.require(!against_draft || draft_probs.has_value(), "draft_probs", "a Tensor for this rule", "None");
  check.require(against_draft || !draft_probs.has_value(), "draft_probs", "None for this rule", "a Tensor");
  check.require(rule != VerifyRule::kTypical || !lossless, "lossless", "False for rule 'typical'", "True");
  check.require(typical_epsilon >= 0.0 && typical_epsilon <= 1.0, "typical_epsilon", "a value in [0, 1]",
                typical_epsilon);
  check.require(typical_alpha >= 0.0 && typical_alpha <= 1.0, "typical_alpha", "a value in [0, 1]", typical_alpha);
  if (!draft_probs.has_value()) return;
  check.dtype(*draft_probs, "draft_probs", ScalarType::Float);
  check.same_device(*draft_probs, "draft_probs", logits, "logits");
  check.shape(*draft_probs, "draft_probs", {logits.size(0), logits.size(1), logits.size(2)}, "[B, N, V] of logits");
  check.unit_last_stride(*draft_probs, "draft_probs");
}

// Rows of all nodes first where there are so few that workers would have nothing else to do.
inline bool rows_at_once(const Checker& check, const std::string& rows, int64_t num_rows, int64_t workers) {
  check.require(rows == "auto" || rows == "path" || rows == "all", "rows", "'auto' or 'path' or 'all'",
                "'" + rows + "'");
  return rows == "all" || (rows == "auto" && num_rows <= workers);
}

class VerifyOutputs {
 public:
  VerifyOutputs(const Tensor& like, int64_t num_requests, int64_t num_nodes)
      : nodes_(core::empty_like_on(like, {num_requests, num_nodes}, ScalarType::Int)),
        counts_(core::empty_like_on(like, {num_requests}, ScalarType::Int)),
        token_(core::empty_like_on(like, {num_requests}, ScalarType::Long)),
        status_(core::empty_like_on(like, {num_requests, 2}, ScalarType::Int)) {}

  void fill(VerifyTreeParams& params) const {
    params.accepted_nodes = core::mutable_data_of<int32_t>(nodes_);
    params.accepted_counts = core::mutable_data_of<int32_t>(counts_);
    params.next_tokens = core::mutable_data_of<int64_t>(token_);
    params.status = core::mutable_data_of<int32_t>(status_);
  }
  const Tensor& status() const { return status_; }
  VerifyResult result() const { return {nodes_, counts_, token_, status_}; }

 private:
  Tensor nodes_, counts_, token_, status_;
};

// Contiguous copies of a tree, or the tensors themselves.
struct DenseTree {
  Tensor tokens, parents, counts, first_child, next_sibling;

  explicit DenseTree(const TreeArguments& tree)
      : tokens(torch::stable::contiguous(tree.tokens)),
        parents(torch::stable::contiguous(tree.parents)),
        counts(torch::stable::contiguous(tree.counts)),
        first_child(torch::stable::contiguous(tree.first_child)),
        next_sibling(torch::stable::contiguous(tree.next_sibling)) {}

  void fill(VerifyTreeParams& params) const {
    params.tree_tokens = core::data_of<int64_t>(tokens);
    params.parents = core::data_of<int32_t>(parents);
    params.counts = core::data_of<int32_t>(counts);
    params.first_child = core::data_of<int32_t>(first_child);
    params.next_sibling = core::data_of<int32_t>(next_sibling);
  }
};

// A checked call of verify_tree_sample, with everything that its params struct points into.
class VerifySampleCall {
 public:
  VerifySampleCall(const Checker& check, const Tensor& logits, const TreeArguments& tree, const Tensor& seeds,
                   const Tensor& positions, const std::optional<Tensor>& draft_probs, const std::string& rule,
                   bool lossless, const SettingArguments& settings, double typical_epsilon, double typical_alpha,
                   const std::string& rows, int64_t workers)
      : rule_(check_all(check, logits, tree, seeds, positions, draft_probs, rule, lossless, settings, typical_epsilon,
                        typical_alpha)),
        outputs_(logits, logits.size(0), logits.size(1)),
        tree_(tree),
        dense_(seeds, positions, settings) {
    fill_logits(params_, logits, settings, dense_, outputs_.status());
    tree_.fill(params_);
    outputs_.fill(params_);
    params_.rule = rule_;
    params_.lossless = lossless;
    params_.rows_at_once = rows_at_once(check, rows, logits.size(0) * logits.size(1), workers);
    params_.typical_epsilon = typical_epsilon;
    params_.typical_alpha = typical_alpha;
    if (!draft_probs.has_value()) return;
    params_.draft_probs = core::data_of<float>(*draft_probs);
    params_.stride_draft_request = draft_probs->stride(0);
    params_.stride_draft_node = draft_probs->stride(1);
  }
  const VerifyTreeParams& params() const { return params_; }
  VerifyResult result() const { return outputs_.result(); }

 private:
  static VerifyRule check_all(const Checker& check, const Tensor& logits, const TreeArguments& tree,
                              const Tensor& seeds, const Tensor& positions, const std::optional<Tensor>& draft_probs,
                              const std::string& rule, bool lossless, const SettingArguments& settings,
                              double typical_epsilon, double typical_alpha) {
    check_logits(check, logits, seeds, positions, settings, true);
    check_tree(check, tree, logits, "logits");
    const VerifyRule found = to_rule(check, rule);
    check_rule(check, found, lossless, draft_probs, logits, typical_epsilon, typical_alpha);
    return found;
  }

  VerifyRule rule_;
  VerifyOutputs outputs_;
  DenseTree tree_;
  DenseArguments dense_;
  VerifyTreeParams params_ = {};
};

// The same of verify_tree_greedy: the coupled rule at temperature 0, or along given tokens.
class VerifyGreedyCall {
 public:
  VerifyGreedyCall(const Checker& check, const std::optional<Tensor>& logits,
                   const std::optional<Tensor>& target_tokens, const TreeArguments& tree, int64_t workers)
      : given_(check_all(check, logits, target_tokens, tree)),
        outputs_(given_, given_.size(0), given_.size(1)),
        tree_(tree),
        dense_target_(target_tokens.has_value() ? std::optional<Tensor>(torch::stable::contiguous(*target_tokens))
                                                : std::nullopt) {
    tree_.fill(params_);
    outputs_.fill(params_);
    params_.num_requests = given_.size(0);
    params_.num_nodes = given_.size(1);
    params_.vocab_size = std::numeric_limits<int64_t>::max();
    params_.lossless = true;
    params_.settings[kTopP] = params_.settings[kTypicalMass] = params_.settings[kRepetition] = 1.0;
    if (dense_target_.has_value()) {
      params_.target_tokens = core::data_of<int64_t>(*dense_target_);
      return;
    }
    params_.dtype = core::to_dtype(logits->scalar_type());
    params_.logits = logits->const_data_ptr();
    params_.stride_request = logits->stride(0);
    params_.stride_node = logits->stride(1);
    params_.vocab_size = logits->size(2);
    params_.rows_at_once = rows_at_once(check, "auto", given_.size(0) * given_.size(1), workers);
  }
  const VerifyTreeParams& params() const { return params_; }
  VerifyResult result() const { return outputs_.result(); }

 private:
  static Tensor check_all(const Checker& check, const std::optional<Tensor>& logits,
                          const std::optional<Tensor>& target_tokens, const TreeArguments& tree) {
    check.require(logits.has_value() != target_tokens.has_value(), "logits", "one of logits and target_tokens",
                  logits.has_value() ? "both" : "none");
    const Tensor& given = logits.has_value() ? *logits : *target_tokens;
    const char* name = logits.has_value() ? "logits" : "target_tokens";
    if (logits.has_value()) {
      const ScalarType type = given.scalar_type();
      check.require(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half, name,
                    "dtype float32 or bfloat16 or float16", core::dtype_name(type));
    } else {
      check.dtype(given, name, ScalarType::Long);
    }
    check.rank(given, name, logits.has_value() ? 3 : 2);
    if (logits.has_value()) check.require(given.size(2) >= 1, name, "V >= 1", given.size(2));
    check_tree(check, tree, given, name);
    if (logits.has_value()) check.unit_last_stride(given, name);
    return given;
  }

  Tensor given_;
  VerifyOutputs outputs_;
  DenseTree tree_;
  std::optional<Tensor> dense_target_;
  VerifyTreeParams params_ = {};
};

}  // namespace tokcore::speculative
