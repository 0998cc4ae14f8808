// TMA: tiles and runs of bytes between global and shared memory, done by the async queue.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace tokcore::simt {

using TileCoordinates = std::initializer_list<int32_t>;  // innermost first, in elements

// cp.async.bulk.tensor to shared memory. Elements outside the tensor become zero; the mbarrier gets the bytes of the
// whole box.
void tma_load(const void* map, const void* barrier, void* to, TileCoordinates corner);

// The same tile to the same place of every block of the cluster that is in `blocks`, each with its own mbarrier.
void tma_load_multicast(const void* map, const void* barrier, uint16_t blocks, void* to, TileCoordinates corner);

// cp.async.bulk.tensor to global memory, and cp.reduce.async.bulk.tensor .add. Elements outside are left alone.
void tma_store(const void* map, const void* from, TileCoordinates corner);
void tma_reduce_add(const void* map, const void* from, TileCoordinates corner);

// cp.async.bulk: consecutive bytes.
void bulk_load(const void* from, const void* barrier, void* to, int32_t bytes);
void bulk_store(const void* from, void* to, int32_t bytes);

// Of this thread's stores: groups, and waiting for all but the newest `allowed` of them. reads_only: the stores need
// only have read shared memory.
void bulk_commit_group();
void bulk_wait_group(int allowed, bool reads_only);

// Without effect, but checked like the real thing.
void tma_prefetch(const void* map, TileCoordinates corner);
void tma_prefetch_map(const void* map);
void bulk_prefetch(const void* from, int32_t bytes);

}  // namespace tokcore::simt
