// The barrier of a whole block, __syncthreads and its reductions.
#pragma once

#include <source_location>

namespace tokcore::simt {

struct Votes {
  int count;  // of true predicates
  bool all;
  bool any;
};

// Stricter than the hardware in two ways that no kernel of this project needs: all threads of the block must come from
// the same place in the source, and none may have exited.
Votes block_barrier(const char* name, bool predicate, const std::source_location& where);

}  // namespace tokcore::simt
