// verify_tree: requests are items of work, or the rows of all nodes where there are too few requests. Compiled once per
// instruction-set level.
#include "tokcore/cpu/scratch.h"
#include "tokcore/speculative/sampling_row.h"
#include "tokcore/speculative/verify_walk.h"

namespace tokcore::cpu::TOKCORE_ISA {
namespace {

template <class T>
class Verify {
  using Walk = speculative::VerifyWalk<SamplingRow<T>>;

 public:
  Verify(const VerifyTreeParams& params, const Threads& threads) : p_(params), threads_(threads) {}

  void run() {
    Arena counting;
    plan(counting);
    Scratch memory(counting.used());
    Arena arena(memory.data());
    plan(arena);
    if (rows_at_once()) {
      for_each_item(threads_, p_.num_requests * p_.num_nodes, [&](int64_t item, int worker) {
        const int64_t request = item / p_.num_nodes, node = item % p_.num_nodes;
        if (find_problem(request).status != speculative::kFine || node >= p_.counts[request]) return;
        SamplingRow<T> row(p_, &p_, request, *scratch_[worker]);
        summaries_[item] = row.open(node, Walk::needs_mass(p_));
      });
    }
    for_each_item(threads_, p_.num_requests, [&](int64_t request, int worker) { verify(request, *scratch_[worker]); });
  }

 private:
  struct Problem {
    int32_t status;
    int64_t node;
  };

  bool rows_at_once() const { return p_.rows_at_once && p_.target_tokens == nullptr; }
  void plan(Arena& arena) {
    scratch_ = arena.take_per_thread<RowScratch>(threads_.count, 1);
    summaries_ = arena.take<RowSummary>(rows_at_once() ? p_.num_requests * p_.num_nodes : 0);
  }
  Problem find_problem(int64_t request) const {
    const int32_t settings = speculative::check_settings(p_, request);
    if (settings != speculative::kFine) return {settings, 0};
    for (int64_t node = 0; node < p_.counts[request] || node == 0; ++node) {
      const int32_t status = Walk::check_node(p_, request, node);
      if (status != speculative::kFine) return {status, node};
    }
    return {speculative::kFine, 0};
  }

  void verify(int64_t request, RowScratch& scratch) const {
    int32_t* nodes = p_.accepted_nodes + request * p_.num_nodes;
    Problem problem = find_problem(request);
    int32_t length = 0;
    int64_t next_token = -1;
    if (problem.status == speculative::kFine && p_.counts[request] > 0) {
      SamplingRow<T> row(p_, &p_, request, scratch);
      Walk walk(p_, request, row, rows_at_once() ? summaries_ + request * p_.num_nodes : nullptr);
      length = walk.run(nodes, true);
      problem = {walk.status, walk.status != speculative::kFine ? walk.node_ : 0};
      next_token = length > 0 ? walk.next_token : -1;
    }
    for (int64_t i = length; i < p_.num_nodes; ++i) nodes[i] = -1;
    p_.accepted_counts[request] = length;
    p_.next_tokens[request] = next_token;
    p_.status[2 * request] = problem.status;
    p_.status[2 * request + 1] = static_cast<int32_t>(problem.node);
  }

  const VerifyTreeParams& p_;
  const Threads& threads_;
  PiecePerThread<RowScratch> scratch_;
  RowSummary* summaries_ = nullptr;  // [B, N]
};

}  // namespace

void verify_tree(const VerifyTreeParams& params, const Threads& threads) {
  with_dtype(params.dtype, [&](auto element) { Verify<decltype(element)>(params, threads).run(); });
}

}  // namespace tokcore::cpu::TOKCORE_ISA
