// What the torch-facing entries of the draft builders share: checks of their tensors, and the trees they allocate.
#pragma once

#include <vector>

#include "core/check.h"
#include "core/tensors.h"
#include "tokcore/speculative/draft_nodes.h"

namespace tokcore::speculative {

using core::Checker;
using core::ScalarType;
using torch::stable::Tensor;

struct DraftArgument {
  const Tensor& tensor;
  const char* name;
  ScalarType dtype;
  int64_t rank;
};

// Dtypes, then devices (those of the first), then ranks.
inline void check_tensors(const Checker& check, const std::vector<DraftArgument>& arguments) {
  for (const DraftArgument& a : arguments) check.dtype(a.tensor, a.name, a.dtype);
  for (const DraftArgument& a : arguments) check.same_device(a.tensor, a.name, arguments[0].tensor, arguments[0].name);
  for (const DraftArgument& a : arguments) check.rank(a.tensor, a.name, a.rank);
}

inline std::string interval(int64_t low, int64_t high, const std::string& note) {
  return "a value in [" + std::to_string(low) + ", " + std::to_string(high) + "] (" + note + ")";
}

inline void check_range(const Checker& check, const char* argument, int64_t value, int64_t low, int64_t high,
                        const char* note) {
  if (value < low || value > high) check.fail(argument, interval(low, high, note), value);
}

inline void check_max_nodes(const Checker& check, int64_t max_nodes) {
  check_range(check, "max_nodes", max_nodes, 1, kMostDraftNodes, "nodes of a tree");
}

inline void check_contiguous(const Checker& check, const Tensor& tensor, const char* argument) {
  if (!tensor.is_contiguous()) check.fail(argument, "a contiguous tensor", "strides");
}

// Rows that update a table are numbered in 32 bits on CUDA.
inline void check_row_count(const Checker& check, const char* argument, int64_t rows) {
  check.require(rows < int64_t{1} << 31, argument, "fewer than 2147483648 rows on CUDA", rows);
}

// One number a request, each within [low, high].
template <class T>
void check_values(const Checker& check, const char* argument, const T* values, int64_t count, int64_t low, int64_t high,
                  const char* note) {
  for (int64_t b = 0; b < count; ++b) {
    if (values[b] >= low && values[b] <= high) continue;
    check.fail(argument, interval(low, high, note), std::to_string(values[b]) + " of request " + std::to_string(b));
  }
}

struct TreeTensors {
  Tensor parents, tokens, counts;
  DraftTrees trees;
};

inline TreeTensors empty_trees(const Tensor& like, int64_t num_requests, int64_t max_nodes) {
  TreeTensors made{core::empty_like_on(like, {num_requests, max_nodes}, ScalarType::Int),
                   core::empty_like_on(like, {num_requests, max_nodes}, ScalarType::Long),
                   core::empty_like_on(like, {num_requests}, ScalarType::Int),
                   {}};
  made.trees = {core::mutable_data_of<int32_t>(made.parents), core::mutable_data_of<int64_t>(made.tokens),
                core::mutable_data_of<int32_t>(made.counts), max_nodes};
  return made;
}

}  // namespace tokcore::speculative
