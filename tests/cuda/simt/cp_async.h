// cp.async: copies from global to shared memory that complete at a wait of the thread that issued them.
#pragma once

#include <cstddef>

namespace tokcore::simt {

// 4, 8 or 16 bytes, of which the first `valid` are read from `global` and the others are zero.
void cp_async(void* shared, const void* global, size_t bytes, size_t valid);

void cp_async_commit_group();
void cp_async_wait_group(int pending);  // until at most `pending` of the latest groups are open
void cp_async_wait_all();               // committed or not

}  // namespace tokcore::simt
