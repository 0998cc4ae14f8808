// Which nodes of a tree of drafted tokens a target model keeps, and the token after them.
#pragma once

#include "tokcore/cpu/threads.h"
#include "tokcore/speculative/sampling.h"

namespace tokcore {

enum class VerifyRule : int32_t { kCoupled, kWithoutReplacement, kIid, kTargetOnly, kTypical };

struct VerifyTreeParams : speculative::LogitsParams {
  VerifyRule rule;
  bool lossless;      // refuse children that the rule is not lossless for
  bool rows_at_once;  // rows of all nodes first, then the path; else the rows of the path alone
  double typical_epsilon, typical_alpha;
  const int64_t* target_tokens;  // [B, N] or null: what the target says after each node, instead of logits
  const float* draft_probs;      // [B, N, V] or null: row n is what the children of node n were drawn from
  int64_t stride_draft_request, stride_draft_node;  // elements
  const int64_t* tree_tokens;                       // [B, N]
  const int32_t* parents;                           // [B, N]
  const int32_t* counts;                            // [B]
  const int32_t* first_child;                       // [B, N], -1 for none
  const int32_t* next_sibling;                      // [B, N], -1 for none
  int32_t* accepted_nodes;                          // [B, N], the path from the root on, then -1
  int32_t* accepted_counts;                         // [B]
  int64_t* next_tokens;                             // [B]
};

void run_verify_tree_cpu(const VerifyTreeParams& params, const cpu::Threads& threads);

}  // namespace tokcore
