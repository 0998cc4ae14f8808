"""``kv_saliency`` on the CUDA kernels: its case table, the tests of the public function, and bits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

import kv_simt as cuda
import pytest
import torch
from kv_support import random
from simt_support import POLICIES, Policy
from support import assert_error_rule, bits
from test_kv_saliency import test_counts_are_exact as test_counts_are_exact
from test_kv_saliency import test_noise_is_a_function_of_the_seed as test_noise_is_a_function_of_the_seed
from test_kv_saliency import test_sums_add_up_to_the_probes as test_sums_add_up_to_the_probes

import tokcore
from tokcore.testing import tables

TABLE = tables()["kv_saliency"]
QUICK = [case.name for case in TABLE.cases if "quick" in case.tags]


@pytest.fixture(autouse=True)
def _kernels() -> Iterator[None]:
    with cuda.in_place_of_the_cpu("kv_saliency"):
        yield


@pytest.mark.parametrize("name", QUICK)
def test_case(name: str) -> None:
    assert_error_rule(TABLE, TABLE.make_inputs(TABLE.case(name), "cpu", 0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("D", [16, 19])  # rows of 16 bytes, and others
@pytest.mark.parametrize("policy", POLICIES[::2], ids=str)
def test_the_order_of_threads_changes_no_bit(dtype: torch.dtype, D: int, policy: Policy) -> None:
    q, k = random(1, 9, 4, D, dtype=dtype), random(1, 140, 2, D, seed=1, dtype=dtype)
    positions = torch.arange(131, 140, dtype=torch.int32).reshape(1, 9)
    expected = tokcore.kv_saliency(q, k, positions, reduce="decayed", decay=0.9)
    policy.use()
    found = tokcore.kv_saliency(q, k, positions, reduce="decayed", decay=0.9)
    assert torch.equal(bits(found), bits(expected))


def test_more_than_a_split_of_tokens() -> None:
    q, k = random(1, 2, 1, 16, dtype=torch.float16), random(1, 1100, 1, 16, seed=1, dtype=torch.float16)
    positions = torch.tensor([[1099, 1030]], dtype=torch.int32)
    found = tokcore.kv_saliency(q, k, positions, reduce="sum")
    z = torch.einsum("thd,nhd->tn", q[0].double(), k[0].double()) / 4.0
    z[1, 1031:] = -torch.inf
    torch.testing.assert_close(found[0, 0].double(), z.softmax(-1).sum(0), rtol=0, atol=1e-6)
