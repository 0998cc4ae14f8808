"""Planted bugs of the portable kind (cp.async, ldmatrix, mma.sync, barriers, shuffles, masks) are caught."""

from __future__ import annotations

import re

import pytest
import torch
from mutation_suite import WrongResultError, catches, outcome
from simt_support import POLICIES, Policy, guarded, guarded_empty, simt

ROWS, COLUMNS, DEPTH = 77, 90, 200  # nothing a multiple of a tile; the last of seven tiles lies in the first stage
TILE = 64


def gemm(mutation: str, placement: str = "end") -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(ROWS, DEPTH, generator=generator).bfloat16()
    b = torch.randn(COLUMNS, DEPTH, generator=generator).bfloat16()
    exact = a.double() @ b.double().T
    sums = torch.nn.functional.pad(exact, (0, -COLUMNS % TILE)).view(ROWS, -1, TILE).sum(2).T
    a, b = guarded(a, "a", placement), guarded(b, "b", placement)
    c = guarded_empty((ROWS, COLUMNS), torch.float32, "c", placement)
    row_sums = guarded_empty(sums.shape, torch.float32, "row_sums", placement)
    simt.gemm_sm80(mutation, a.data_ptr(), b.data_ptr(), c.data_ptr(), row_sums.data_ptr(), ROWS, COLUMNS, DEPTH)
    bound = 2.0**-20 * (a.double().abs() @ b.double().abs().T)
    if not ((c - exact).abs() <= bound).all():
        raise WrongResultError("c")
    if not ((row_sums - sums).abs() <= TILE * bound.max()).all():
        raise WrongResultError("row_sums")


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("placement", ["end", "start"])
def test_unharmed_gemm_passes(policy: Policy, placement: str) -> None:
    policy.use()
    gemm("", placement)


@pytest.mark.parametrize("mutation", simt.gemm_sm80_mutations())
def test_bug_in_gemm_is_caught(mutation: str) -> None:
    found = catches(gemm, mutation)
    print(found)
    assert found


@pytest.mark.parametrize(
    ("mutation", "asynchrony", "text"),
    [
        ("divergent_barrier", "late", "__syncthreads"),
        ("barrier_in_branches", "late", "divergent barrier"),
        ("misaligned_ldmatrix", "late", "ldmatrix.x4: misaligned"),
        ("misaligned_copy", "late", "cp.async: misaligned global address"),
        ("ldmatrix_past_end", "late", "not inside the block's"),
        ("read_past_end", "late", "invalid read, .* past the end of buffer row_sums"),
        ("row_mask_off_by_one", "late", "past the end of buffer [ab]"),
        ("shuffle_within_half", "late", "which is not in the mask|not in its own mask"),
    ],
)
def test_what_is_wrong_is_named(mutation: str, asynchrony: str, text: str) -> None:
    message = outcome(gemm, mutation, Policy(asynchrony=asynchrony))
    assert re.search(text, message), message
    assert "kernel gemm_sm80, block (" in message
    assert "thread (" in message


def test_late_and_early_work_catch_what_the_other_misses() -> None:
    late, early = Policy(asynchrony="late"), Policy(asynchrony="early")
    assert outcome(gemm, "wait_for_one_too_few", late)
    assert not outcome(gemm, "wait_for_one_too_few", early)
    assert outcome(gemm, "refill_before_barrier", early)
    assert not outcome(gemm, "refill_before_barrier", late)


def test_unknown_mutations_are_refused() -> None:
    with pytest.raises(ValueError, match="no mutation is called missing_everything"):
        gemm("missing_everything")
