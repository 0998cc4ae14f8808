"""The execution itself: order of threads, warp and block primitives, what it notices and how it says so."""

from __future__ import annotations

import re

import pytest
import torch
from simt_support import POLICIES, Policy, guarded, guarded_empty, simt

ORDERS = [Policy("in_order"), Policy("reversed"), Policy("random", seed=1), Policy("random", seed=2)]
IDS = ["in_order", "reversed", "random-1", "random-2"]
LANES = torch.arange(32)


@pytest.mark.parametrize("policy", ORDERS, ids=IDS)
def test_shuffles_votes_and_reductions(policy: Policy) -> None:
    policy.use()
    out = guarded_empty((14, 32), torch.int32, "out")
    simt.warp_shuffles(out.data_ptr())
    value = 3 * LANES + 1
    thirds = sum(1 << lane for lane in range(0, 32, 3))
    groups = [sum(1 << other for other in range(32) if other // 5 == lane // 5) for lane in range(32)]
    expected = [
        value[torch.full((32,), 5)],
        value[LANES // 8 * 8 + (LANES + 1) % 8],
        value[torch.where(LANES < 3, LANES, LANES - 3)],
        value[torch.where(LANES % 16 + 3 > 15, LANES, LANES + 3)],
        value[LANES ^ 17],
        torch.full((32,), thirds),
        torch.ones(32),
        torch.zeros(32),
        torch.ones(32),
        torch.zeros(32),
        torch.tensor(groups),
        torch.full((32,), -7),
        torch.full((32,), 2**32 - 1),  # the greatest unsigned one is a negative number
        torch.where(LANES < 16, value[:16].sum(), value[16:].sum()),
    ]
    for row, wanted in zip(out.long().remainder(2**32), expected, strict=True):
        assert row.tolist() == wanted.long().remainder(2**32).tolist()


@pytest.mark.parametrize("policy", ORDERS, ids=IDS)
@pytest.mark.parametrize("workers", [1, 3])
def test_blocks_and_barriers(policy: Policy, workers: int) -> None:
    Policy(policy.order, seed=policy.seed, workers=workers).use()
    for placement in ("end", "start"):
        values = guarded(torch.arange(1000, dtype=torch.float32), "values", placement)
        sums = guarded_empty((8,), torch.float32, "sums", placement)
        simt.block_sum(values.data_ptr(), sums.data_ptr(), 1000, 8, 128)
        padded = torch.nn.functional.pad(values, (0, 24)).view(8, 128)
        assert sums.equal(padded.sum(1))


@pytest.mark.parametrize("threshold", [0, 50, 96])
def test_barriers_that_vote(threshold: int) -> None:
    out = guarded_empty((4,), torch.int32, "out")
    simt.block_votes(out.data_ptr(), threshold)
    assert out.tolist() == [threshold, int(threshold == 96), int(threshold > 0), 95 * 96 // 2]


@pytest.mark.parametrize("policy", ORDERS, ids=IDS)
@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("divergent_shuffle", r"divergent warp: .* reached __shfl_xor_sync \(vocabulary_warp.cc:\d+\) for lanes"),
        ("lane_outside_mask", "__shfl_sync .* not in its own mask, lanes 0-15|reads lane"),
        ("missing_lane", "exited while other lanes .* wait for it in __syncwarp|lanes 7 of its mask have exited"),
        ("divergent_barrier", r"divergent barrier: .* __syncthreads \(vocabulary_warp.cc:\d+\) while"),
        ("barrier_of_some_warps", "exited while .* threads wait in __syncthreads|__syncthreads .* have exited"),
        ("exit_before_barrier", "exited while .* threads wait in __syncthreads|__syncthreads .* have exited"),
        ("read_past_end", r"invalid read, \d+ bytes past the end of buffer out \(512 bytes\)"),
        ("write_before_beginning", "buffer out: a write before its beginning"),
        ("write_past_shared", "invalid write beside shared memory"),
        ("write_beside_shared", "a write beside the block's shared memory"),
        ("mixed_wait", r"deadlock; block \(0,0,0\): threads 0,32,64,96 wait in __syncthreads .*, threads 1-31,33-63.* "
                       r"wait in __syncwarp"),
        ("endless_recursion", "local memory is used up"),
        ("division_by_zero", "integer division by zero"),
        ("trap", r"thread \(3,0,0\): __trap \(vocabulary_warp.cc:\d+\)"),
        ("endless_poll", "deadlock; .*threads 0-127 poll in __nanosleep"),
        ("unsupported_mma", "SM80_16x8x16_F16F16F16F16_TN has no emulation"),
        ("unsupported_wrapper", "SM70_8x8x4_F16F16F16F16_TN.* has no emulation"),
        ("exception", "exception: thrown by the kernel"),
    ],
)  # fmt: skip
def test_what_a_kernel_does_wrong_is_named(policy: Policy, fault: str, text: str) -> None:
    policy.use()
    out = guarded_empty((128,), torch.int32, "out")
    with pytest.raises(simt.Error, match=text) as caught:
        simt.run_fault(fault, out.data_ptr())
    assert re.match(r"kernel \w+[:,] |buffer out", str(caught.value))


def test_lanes_that_do_not_exist_cannot_be_waited_for() -> None:
    values, sums = guarded(torch.zeros(48), "values"), guarded_empty((1,), torch.float32, "sums")
    with pytest.raises(simt.Error, match=r"__shfl_xor_sync .* lanes 16-31 of its mask have exited or do not exist"):
        simt.block_sum(values.data_ptr(), sums.data_ptr(), 48, 1, 48)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_launch_leaves_nothing_behind(workers: int) -> None:
    Policy(workers=workers).use()
    values, sums = guarded(torch.zeros(100), "values"), guarded_empty((64,), torch.float32, "sums")
    for _ in range(3):
        with pytest.raises(simt.Error, match="past the end of buffer values"):
            simt.block_sum(values.data_ptr(), sums.data_ptr(), 64 * 32, 64, 32)
        with pytest.raises(simt.Error):
            simt.run_fault("read_past_end", guarded_empty((128,), torch.int32, "out").data_ptr())
        test_barriers_that_vote(50)


def test_an_input_must_not_be_written() -> None:
    out = guarded(torch.zeros(4, dtype=torch.int32), "input")
    with pytest.raises(simt.Error, match="invalid write, offset 0 of buffer input"):
        simt.block_votes(out.data_ptr(), 50)


@pytest.mark.parametrize(
    ("grid", "threads", "shared", "cluster", "text"),
    [
        ((1, 1), 2000, 0, 1, "2000 threads in a block, expected 1 to 1024"),
        ((1, 70000), 32, 0, 1, "the grid exceeds"),
        ((1, 1), 96, 1 << 20, 1, "1048576 bytes of shared memory, at most 232448 exist"),
        ((3, 1), 96, 0, 2, "no multiple of the cluster's"),
        ((32, 1), 96, 0, 32, "clusters have 1 to 16 blocks"),
    ],
)
def test_launches_that_no_gpu_takes(grid: tuple[int, int], threads: int, shared: int, cluster: int, text: str) -> None:
    out = guarded_empty((4,), torch.int32, "out")
    with pytest.raises(simt.Error, match=f"kernel shape: .*{text}"):
        simt.launch_shape(*grid, threads, shared, cluster, out.data_ptr())
    assert out.eq(-1).all()


def test_an_empty_grid_is_no_work() -> None:
    out = guarded_empty((4,), torch.int32, "out")
    simt.launch_shape(0, 1, 96, 0, 1, out.data_ptr())
    assert out.eq(-1).all()


def test_a_seed_decides_everything() -> None:
    def order(seed: int, workers: int) -> list[int]:
        Policy("random", "random", seed, workers).use()
        out = guarded_empty((64,), torch.int32, "out")
        simt.arrival_order(out.data_ptr())
        return out.tolist()

    assert order(5, 1) == order(5, 1)
    assert order(5, 1) != order(6, 1)
    assert sorted(order(5, 1)) == list(range(64))


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_arrival_follows_the_order(policy: Policy) -> None:
    policy.use()
    out = guarded_empty((64,), torch.int32, "out")
    simt.arrival_order(out.data_ptr())
    expected = {"in_order": list(range(64)), "reversed": list(range(63, -1, -1))}
    if policy.order in expected:
        assert out.tolist() == expected[policy.order]
    else:
        assert out.tolist() not in expected.values()


def test_unknown_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="sideways is none of in_order, reversed, random"):
        simt.set_policy(order="sideways")
    with pytest.raises(ValueError, match="never is none of late, early, random"):
        simt.set_policy(asynchrony="never")


def test_buffers_are_poisoned_and_lie_against_the_asked_end() -> None:
    for placement in ("end", "start"):
        buffer = simt.GuardedBuffer(1000, placement=placement, name="b")
        assert bytes(memoryview(buffer)) == b"\xff" * 1000
        assert buffer.data_ptr() % 16 == 0
        assert buffer.damage() == ""
    exact = simt.GuardedBuffer(4096, placement="end", name="b", alignment=16)
    assert (exact.data_ptr() + 4096) % 4096 == 0
    with pytest.raises(ValueError, match="middle is none of end, start"):
        simt.GuardedBuffer(10, placement="middle")
