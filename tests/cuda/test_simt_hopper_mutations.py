"""Planted bugs of the Hopper kind (mbarriers, TMA, wgmma, named barriers, clusters) are caught."""

from __future__ import annotations

import re

import pytest
import torch
from mutation_suite import WrongResultError, catches, outcome
from simt_support import POLICIES, Policy, guarded, guarded_empty, simt

ROWS, COLUMNS, DEPTH = 208, 200, 400  # eight tiles for two blocks, seven stages deep, all with edges


def gemm(mutation: str) -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(ROWS, DEPTH, generator=generator).bfloat16()
    b = torch.randn(COLUMNS, DEPTH, generator=generator).bfloat16()
    exact = a.double() @ b.double().T
    bound = 2.0**-20 * (a.double().abs() @ b.double().abs().T)
    a, b = guarded(a, "a"), guarded(b, "b")
    c = guarded_empty((ROWS, COLUMNS), torch.float32, "c")
    simt.mutated_hopper_gemm(mutation, a.data_ptr(), b.data_ptr(), c.data_ptr(), ROWS, COLUMNS, DEPTH, 2)
    if not ((c - exact).abs() <= bound).all():
        raise WrongResultError("c")


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_unharmed_gemm_passes(policy: Policy) -> None:
    assert outcome(gemm, "", policy) == ""


@pytest.mark.parametrize("mutation", simt.hopper_gemm_mutations())
def test_bug_in_gemm_is_caught(mutation: str) -> None:
    found = catches(gemm, mutation)
    print("\n".join(f"{policy}: {text}" for policy, text in found.items()))
    assert found


@pytest.mark.parametrize(
    ("mutation", "text"),
    [
        (
            "wrong_byte_count",
            r"deadlock; .*mbarrier.wait for parity 0 of the mbarrier at shared offset \d+ in phase 0: "
            r"0 of 1 arrivals and 16 transaction bytes pending",
        ),
        ("missing_remote_arrive", r"deadlock; .*in phase 0: 8 of 16 arrivals and 0 transaction bytes pending"),
        ("missing_init", r"mbarrier at shared offset \d+ is not initialised"),
        ("missing_init_fence", "not published to the async proxy"),
        ("empty_arrive_of_stage_in_use", r"TMA load .* warp \d+ has not waited for MMA_64x64x16_F32BF16BF16_SS"),
        ("missing_wgmma_fence", "no wgmma.fence since the program last used these registers"),
        ("missing_wgmma_wait", "has not waited for MMA_64x64x16_F32BF16BF16_SS"),
        ("wgmma_of_three_warps", "another warp of its warpgroup"),
        ("early_fragment_reload", "A register .* before wgmma.wait_group"),
        ("missing_proxy_fence", "TMA store: .* not followed by fence.proxy.async"),
        ("missing_store_commit", "no cp.async.bulk.commit_group followed"),
        ("named_barrier_count_too_large", r"deadlock; .*bar.sync 1, 160 in phase \d+: 128 threads have arrived"),
        ("register_overdraw", "deadlock; .*setmaxnreg.inc 232: the block uses 64512 of 64512 registers"),
        ("missing_cluster_sync", "mbarrier.arrive: block [01] has exited"),
    ],
)
def test_what_is_wrong_is_named(mutation: str, text: str) -> None:
    message = outcome(gemm, mutation, Policy())
    assert re.search(text, message), message
    assert "kernel hopper_gemm" in message


def test_late_and_early_stores_catch_what_the_other_misses() -> None:
    assert outcome(gemm, "missing_store_wait", Policy(asynchrony="late"))
    assert not outcome(gemm, "missing_store_wait", Policy(asynchrony="early"))
