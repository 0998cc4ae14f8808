// The bulk groups of a thread: its asynchronous stores to global memory, in the order of their commits.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "simt/block.h"

namespace tokcore::simt {

// Part of this block's shared memory.
struct SharedRange {
  uint32_t offset, bytes;
};

// Adds a store to this thread's open group: first `read` takes the bytes out of shared memory, some time later `write`
// puts them into global memory. Both run as this thread: at once, or when a wait demands it, as the policy says.
// Nothing but a wait depends on them, so that late is as late as it can be.
void add_bulk_store(SharedRange source, std::function<std::vector<unsigned char>()> read,
                    std::function<void(const std::vector<unsigned char>&)> write);

// For writes by TMA: fail()s if a store reads there that its thread has not waited for.
void check_not_read_by_bulk_stores(Block& block, SharedRange range, const char* primitive);

}  // namespace tokcore::simt
