// The way down a tree, from the root to where the target model leaves it: what is accepted, and what is drawn in the
// end. One text for every backend; Row reads logits (cpu: sampling_row.h, CUDA: sampling_row.cuh).
#pragma once

#include "tokcore/speculative/noise.h"
#include "tokcore/speculative/verify_tree.h"

namespace tokcore::speculative {

TOKCORE_SHARED_FUNCTION int64_t depth_of(const int32_t* parents, int64_t node) {
  int64_t depth = 0;
  for (; node > 0; node = parents[node]) ++depth;
  return depth;
}

template <class Row>
class VerifyWalk {
 public:
  // summaries [N] of this request's rows, or null where each is read when it is reached.
  TOKCORE_SHARED_MEMBER VerifyWalk(const VerifyTreeParams& params, int64_t request, Row& row,
                                   const RowSummary* summaries)
      : p_(params),
        row_(row),
        summaries_(summaries),
        request_(request),
        tokens_(params.tree_tokens + request * params.num_nodes),
        parents_(params.parents + request * params.num_nodes),
        first_child_(params.first_child + request * params.num_nodes),
        next_sibling_(params.next_sibling + request * params.num_nodes) {}

  // Links and token of a node, and whether it repeats a sibling where the rule forbids that. A count out of range
  // shows at node 0.
  static TOKCORE_SHARED_MEMBER int32_t check_node(const VerifyTreeParams& p, int64_t request, int64_t node) {
    const int64_t tree = request * p.num_nodes;
    const int32_t count = p.counts[request];
    if (count < 0 || count > p.num_nodes) return kBadLink;
    if (node >= count) return kFine;
    const int32_t child = p.first_child[tree + node], sibling = p.next_sibling[tree + node];
    const int32_t parent = p.parents[tree + node];
    const bool child_fits = child == -1 || (child > node && child < count);
    const bool sibling_fits = sibling == -1 || (sibling > node && sibling < count);
    const bool parent_fits = node == 0 ? parent == -1 : parent >= 0 && parent < node;
    if (!child_fits || !sibling_fits || !parent_fits) return kBadLink;
    if (node == 0) return kFine;
    const int64_t token = p.tree_tokens[tree + node];
    if (token < 0 || token >= p.vocab_size) return kBadToken;
    if (p.rule != VerifyRule::kWithoutReplacement || !p.lossless) return kFine;
    for (int64_t other = node - 1; other > 0; --other) {
      if (p.parents[tree + other] == parent && p.tree_tokens[tree + other] == token) return kDuplicateSibling;
    }
    return kFine;
  }
  static TOKCORE_SHARED_MEMBER bool needs_mass(const VerifyTreeParams& p) { return p.rule != VerifyRule::kCoupled; }

  // The path into nodes [N] where `writes`; its length. What was drawn, or the problem, afterwards.
  TOKCORE_SHARED_MEMBER int32_t run(int32_t* nodes, bool writes) {
    int32_t length = 0;
    position_ = p_.positions == nullptr ? 0 : p_.positions[request_];
    for (int64_t node = 0;; ++position_) {
      if (writes) nodes[length] = static_cast<int32_t>(node);
      ++length;
      node_ = node;
      node = step(node);
      if (status != kFine) return 0;
      if (node < 0) return length;
    }
  }

  int32_t status = kFine;
  int64_t node_ = 0;
  int64_t next_token = -1;

 private:
  // The child that is accepted; -1 with next_token drawn.
  TOKCORE_SHARED_MEMBER int64_t step(int64_t node) {
    if (p_.target_tokens != nullptr) return follow(node, p_.target_tokens[request_ * p_.num_nodes + node]);
    const RowSummary& summary = open(node);
    if (summary.status != kFine) {
      status = summary.status;
      return -1;
    }
    switch (p_.rule) {
      case VerifyRule::kCoupled:
        return follow(node, row_.coupled_token(position_));
      case VerifyRule::kTypical:
        return typical(node);
      case VerifyRule::kTargetOnly:
        return target_only(node);
      default:
        return first_child_[node] < 0 ? draw_target() : against_draft(node);
    }
  }
  TOKCORE_SHARED_MEMBER const RowSummary& open(int64_t node) {
    if (summaries_ == nullptr) return row_.open(node, needs_mass(p_));
    row_.reopen(node, summaries_[node]);
    return row_.summary();
  }

  TOKCORE_SHARED_MEMBER int64_t follow(int64_t node, int64_t token) {
    for (int64_t child = first_child_[node]; child >= 0; child = next_sibling_[child]) {
      if (tokens_[child] == token) return child;
    }
    next_token = token;
    return -1;
  }

  // The likeliest child above the threshold, of equal ones the first.
  TOKCORE_SHARED_MEMBER int64_t typical(int64_t node) {
    const double entropy = entropy_of(row_.summary(), row_.weight_bits());
    const double relative = exact::mul(p_.typical_alpha, exact::exp_minus(entropy));
    const double threshold =
        exact::mul(relative < p_.typical_epsilon ? relative : p_.typical_epsilon, as_double(row_.summary().mass));
    uint64_t greatest = 0;
    int64_t found = -1;
    for (int64_t child = first_child_[node]; child >= 0; child = next_sibling_[child]) {
      const uint64_t weight = row_.weight(tokens_[child]);
      if (weight > greatest && as_double(weight) > threshold) {
        greatest = weight;
        found = child;
      }
    }
    if (found < 0) next_token = row_.coupled_token(position_);
    return found;
  }

  // r in [0, 1) of a child, and the bits of the draw in the end.
  TOKCORE_SHARED_MEMBER double uniform(int64_t child) const {
    return unit_interval(random_bits(p_.seeds[request_], Stream::kAccepts, child, position_));
  }
  TOKCORE_SHARED_MEMBER uint64_t draw_below(uint64_t total) const {
    return below(random_bits(p_.seeds[request_], Stream::kDraws, 0, position_), total);
  }
  TOKCORE_SHARED_MEMBER bool repeats_sibling(int64_t node, int64_t child) const {
    for (int64_t other = first_child_[node]; other != child; other = next_sibling_[other]) {
      if (tokens_[other] == tokens_[child]) return true;
    }
    return false;
  }

  TOKCORE_SHARED_MEMBER int64_t draw_target() {
    next_token = row_.draw_weight(draw_below(row_.summary().mass), [](auto&&) {});
    return -1;
  }

  // Each child is accepted with the probability that it has left; a rejected one leaves the distribution.
  TOKCORE_SHARED_MEMBER int64_t target_only(int64_t node) {
    uint64_t left = row_.summary().mass;
    for (int64_t child = first_child_[node]; child >= 0; child = next_sibling_[child]) {
      if (repeats_sibling(node, child)) continue;
      const uint64_t weight = row_.weight(tokens_[child]);
      if (exact::mul(uniform(child), as_double(left)) < as_double(weight)) return child;
      left -= weight;
    }
    next_token = row_.draw_weight(draw_below(left), [&](auto&& skip) {
      for (int64_t child = first_child_[node]; child >= 0; child = next_sibling_[child]) skip(tokens_[child]);
    });
    return -1;
  }

  // Each child is accepted if r q < p. Then p becomes norm(relu(p - q)) and, without replacement, q loses the child.
  // After any number of rejections p is norm(relu(p - factor q)) with the first p and q: one number says it all.
  TOKCORE_SHARED_MEMBER int64_t against_draft(int64_t node) {
    if (first_child_[node] < 0) return draw_target();  // q says nothing there
    const bool replaces = p_.rule == VerifyRule::kIid;
    const double unit = static_cast<double>(int64_t{1} << row_.weight_bits());
    const uint64_t drafted = row_.draft_mass();
    if (drafted == 0) {
      status = kBadDraft;
      return -1;
    }
    uint64_t draft_left = drafted, mass = row_.summary().mass;
    double factor = 0.0;
    for (int64_t child = first_child_[node]; child >= 0; child = next_sibling_[child]) {
      const int64_t token = tokens_[child];
      if (!replaces && repeats_sibling(node, child)) continue;
      const uint64_t q = row_.draft(token);
      if (q == 0 && p_.lossless) {
        status = kImpossibleDraft;
        node_ = child;
        return -1;
      }
      if (draft_left == 0) break;
      const uint64_t p = factor == 0.0 ? row_.weight(token) : row_.residual(token, factor, drafted);
      const double tested = exact::mul(exact::mul(uniform(child), as_double(q)), as_double(mass));
      if (tested < exact::mul(as_double(p), as_double(draft_left))) return child;
      const double scale = factor == 0.0 ? 1.0 : as_double(mass) / unit;
      const double raised = exact::add(factor, exact::mul(scale, as_double(drafted) / as_double(draft_left)));
      const uint64_t remaining = row_.residual_mass(raised, drafted);
      if (remaining != 0) {  // 0: p = q but for rounding, so that nothing can be rejected
        factor = raised;
        mass = remaining;
      }
      if (!replaces) draft_left -= q;
    }
    if (factor == 0.0) return draw_target();
    next_token = row_.draw_residual(draw_below(mass), factor, drafted);
    return -1;
  }

  const VerifyTreeParams& p_;
  Row& row_;
  const RowSummary* summaries_;
  int64_t request_, position_ = 0;
  const int64_t* tokens_;
  const int32_t* parents_;
  const int32_t* first_child_;
  const int32_t* next_sibling_;
};

}  // namespace tokcore::speculative
