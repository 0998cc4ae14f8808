// Clusters: who is where, and the barrier of all threads of the cluster. Clusters lie along x.
#pragma once

#include <vector_types.h>

#include <cstdint>

namespace tokcore::simt {

uint32_t block_rank_in_cluster();
dim3 block_id_in_cluster();
dim3 cluster_shape();
dim3 cluster_id_in_grid();
dim3 cluster_grid_dims();

// barrier.cluster.arrive and .wait, by all lanes of a warp. An arrive that is not relaxed also publishes the mbarriers
// that the thread initialised.
void cluster_arrive(bool relaxed = false);
void cluster_wait();

}  // namespace tokcore::simt
