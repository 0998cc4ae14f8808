"""Smaller primitives of sm_90, and what is said when one of them, an mbarrier, TMA or wgmma is misused."""

from __future__ import annotations

import pytest
import torch
from simt_support import POLICIES, Policy, guarded, guarded_empty, simt


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_election_and_indices(policy: Policy) -> None:
    policy.use()
    threads = 256
    out = guarded_empty((4, threads), torch.int32, "out")
    simt.hopper_indices(out.data_ptr(), threads)
    thread = torch.arange(threads)
    elected, leader, warp, warpgroup = out
    assert torch.equal(elected.view(8, 32).sum(1), torch.ones(8, dtype=torch.int64))
    assert torch.equal(elected.bool(), thread % 32 == leader)
    assert torch.equal(warp, (thread // 32).int())
    assert torch.equal(warpgroup, (thread // 128).int())


def test_which_lane_is_elected_depends_on_the_policy() -> None:
    lanes = set()
    for policy in (Policy(), Policy("reversed"), *(Policy("random", seed=seed) for seed in range(8))):
        policy.use()
        out = guarded_empty((4, 32), torch.int32, "out")
        simt.hopper_indices(out.data_ptr(), 32)
        lanes.add(int(out[1, 0]))
    assert {0, 31} < lanes


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_named_barriers_hand_over(policy: Policy) -> None:
    policy.use()
    out = guarded_empty((5, 64), torch.int32, "out")
    simt.hand_over(out.data_ptr(), 5)
    expected = 1000 * torch.arange(5)[:, None] + torch.arange(31, -1, -1).repeat(2)
    assert torch.equal(out, expected.int())


def test_stmatrix_undoes_ldmatrix() -> None:
    values = torch.arange(32 * 4, dtype=torch.int32) * 0x10003 + 7
    source, out = guarded(values, "in"), guarded_empty((2, 128), torch.int32, "out")
    simt.move_matrices(source.data_ptr(), out.data_ptr())
    assert torch.equal(out, values.expand(2, 128))


def test_stmatrix_stores_rows_or_columns() -> None:
    matrices = torch.arange(128, dtype=torch.int16).view(2, 8, 8)
    # Lane l holds elements 2 (l % 4) and the next of row l / 4.
    registers = matrices.view(2, 8, 4, 2).permute(1, 2, 0, 3).contiguous()
    source, out = guarded(registers, "in"), guarded_empty((2, 2, 8, 8), torch.int16, "out")
    simt.store_matrices(source.data_ptr(), out.data_ptr())
    assert torch.equal(out, torch.stack([matrices, matrices.transpose(1, 2)]))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("cluster", [1, 2, 4])
def test_cluster(cluster: int, policy: Policy) -> None:
    policy.use()
    blocks = 8
    out = guarded_empty((blocks, 6), torch.int32, "out")
    simt.cluster_places(out.data_ptr(), blocks, cluster)
    expected = [[i % cluster, i % cluster, cluster, i // cluster, blocks // cluster, 0] for i in range(blocks)]
    assert out.tolist() == expected


FAULTS = {
    "arrive_without_init": "mbarrier.arrive: mbarrier at shared offset 0 is not initialised",
    "init_twice": "mbarrier.init: the mbarrier at shared offset 0 is in use",
    "use_after_inval": "mbarrier.arrive: mbarrier at shared offset 0 is not initialised",
    "count_of_zero": "mbarrier.init: the count is 0",
    "misaligned_barrier": "mbarrier.init: misaligned",
    "barrier_past_end": "mbarrier.init: 8 bytes at offset 8192 of 8192",
    "overwritten_barrier": "mbarrier.arrive: mbarrier at shared offset 0 was overwritten",
    "arrive_too_often": "1 more arrivals at the mbarrier at shared offset 0, which lacks 0 of 1 in phase 0",
    "too_many_bytes": "transaction count of the mbarrier at shared offset 0 leaves its range: 1048576",
    "parity_of_two": "mbarrier.wait: the parity is 2",
    "endless_try_wait": "mbarrier.try_wait",
    "map_of_garbage": "TMA load: not a tensor map",
    "misaligned_map": "TMA load: the tensor map is not 64-byte aligned",
    "wrong_rank": "TMA load: 3 coordinates for a tensor map of rank 2",
    "misaligned_tile": "TMA load: misaligned",
    "tile_past_end": "TMA load: .*not inside",
    "load_over_unfenced_stores": "TMA load: uses shared memory at offset 0, where ordinary stores were not followed by",
    "load_nobody_waits_for": "TMA load to shared offset 0",
    "unpublished_barrier": "TMA load: the initialisation of the mbarrier at shared offset 2048 was not published",
    "multicast_beyond_cluster": "TMA multicast load: block 1 of the mask is not in the cluster",
    "narrow_box_under_swizzle": "a box row of 64 bytes under a swizzle of 128 has no emulation",
    "bulk_store_nobody_waits_for": "exits without cp.async.bulk.wait_group",
    "barrier_number_16": "bar.sync 16, 128: barriers are numbered 0 to 15",
    "barrier_number_0": "bar.sync 0, 128: barrier 0 is that of __syncthreads",
    "count_of_48": "bar.sync 1, 48: the count must be a multiple of 32 up to the 128 threads",
    "counts_that_differ": "bar.sync 1, (96|128): other warps of this phase gave the count (96|128)",
    "barriers_that_differ": "bar.sync [12], 128: lane [0-9]+ of the warp is at bar.sync [12], 128",
    "warp_arrives_twice": "bar.arrive 1, 128: this warp arrived at this phase before",
    "half_a_warp_arrives": "bar.sync",
    "election_of_half_a_warp": "elect.sync",
    "registers_not_of_eight": "setmaxnreg.dec 100: the count must be a multiple of 8",
    "registers_of_one_warp": "only some warps of warpgroup 0 executed setmaxnreg.dec 40",
    "increase_to_less": "setmaxnreg.inc 64: the warp has 248 already",
    "cluster_wait_alone": "barrier.cluster.wait without barrier.cluster.arrive",
    "cluster_arrive_twice": "barrier.cluster.arrive a second time",
    "exit_before_cluster_wait": "exits between barrier.cluster.arrive and barrier.cluster.wait",
    "barrier_of_nobody": "mapa",
    "wgmma_of_unfenced_stores": "MMA_64x8x16_F32BF16BF16_SS: uses shared memory at offset 0, where ordinary stores",
    "wgmma_past_end": "MMA_64x8x16_F32BF16BF16_SS: the matrix descriptor leads to shared offset 8192 of 8192",
    "wgmma_of_two_warps": "only some warps of warpgroup 0 executed MMA_64x8x16|another warp of its warpgroup",
    "wgmma_descriptors_that_differ": "of the warp brings another instruction, descriptor or scale",
    "wgmma_write_before_wait": "accumulator register 0 of lane [0-9]+ was written before wgmma.wait_group",
    "store_shared": "store_shared_remote.* has no emulation",
    "im2col": "SM90_TMA_LOAD_IM2COL_3D.* has no emulation",
    "unaligned_barrier": "arrive_and_wait_internal_unaligned.* has no emulation",
    "cp_async_arrive": "cpasync_barrier_arrive.* has no emulation",
    "tensor_memory": "umma_arrive.* has no emulation",
}


@pytest.mark.parametrize("name", simt.hopper_faults())
def test_misuse_is_named(name: str) -> None:
    data = guarded_empty((16, 32), torch.float32, "data")
    with pytest.raises(simt.Error, match=FAULTS[name]) as error:
        simt.run_hopper_fault(name, data.data_ptr())
    assert str(error.value).startswith("kernel hopper_fault")
