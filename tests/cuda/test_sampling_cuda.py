"""Sampling, verification and links of trees on the CUDA kernels: the case tables, policies, and the CPU's bits."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))

import pytest
import sampling_simt as cuda
import torch
from sampling_support import random
from simt_support import POLICIES, Policy
from support import assert_error_rule, bits
from test_verify_tree import RULES, given
from test_verify_tree import (
    test_greedy_is_the_coupled_rule_at_temperature_0 as test_greedy_is_the_coupled_rule_at_temperature_0,
)
from test_verify_tree import test_nodes_on_the_path_count_for_penalties as test_nodes_on_the_path_count_for_penalties
from test_verify_tree import test_requests_without_drafts as test_requests_without_drafts

import tokcore
from tokcore.testing import tables

TABLES = {op: table for op, table in tables().items() if op in cuda.OPERATORS}
QUICK = [(op, case.name) for op, table in TABLES.items() for case in table.cases if "quick" in case.tags]


@pytest.fixture
def _kernels() -> Iterator[None]:
    with cuda.in_place_of_the_cpu():
        yield


pytestmark = pytest.mark.usefixtures("_kernels")


@pytest.mark.parametrize(("op", "name"), QUICK, ids=lambda value: str(value))
def test_case(op: str, name: str) -> None:
    table = TABLES[op]
    assert_error_rule(table, table.make_inputs(table.case(name), "cpu", 0))


@pytest.mark.parametrize("rows", ["path", "all"])
@pytest.mark.parametrize("rule", RULES)
def test_rows_at_once_or_on_the_path(rule: str, rows: str) -> None:
    arguments = given(rule=rule, tokens=torch.tensor([[0, 1, 2, 3, 4]]).repeat(2, 1))
    verdict = tokcore.verify_tree_sample(**arguments, rows=rows)
    other = tokcore.verify_tree_sample(**arguments, rows="all" if rows == "path" else "path")
    assert torch.equal(verdict.accepted_nodes, other.accepted_nodes)
    assert torch.equal(verdict.next_token, other.next_token)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_policies_change_no_bit(policy: Policy) -> None:
    z = 3.0 * random(2, 1500)
    options: dict[str, Any] = {"top_k": 700, "top_p": 0.9, "typical_mass": 0.9, "return_entropy": True}
    found = []
    for chosen in (Policy(), policy):
        chosen.use()
        found.append(tokcore.sample(z, seed=4, position=torch.arange(2), **options))
        arguments = given(rule="without_replacement", logits=random(2, 5, 6, seed=9))
        found.append(tokcore.verify_tree_sample(**arguments))  # type: ignore[arg-type]
    Policy().use()
    assert all(torch.equal(bits(a), bits(b)) for a, b in zip(found[0], found[2], strict=True) if a is not None)  # type: ignore[arg-type]
    assert torch.equal(found[1].accepted_nodes, found[3].accepted_nodes)  # type: ignore[attr-defined]
    assert torch.equal(found[1].next_token, found[3].next_token)  # type: ignore[attr-defined]


def status_of(**change: Any) -> list[list[int]]:
    verdict = tokcore.verify_tree_sample(**given(**change), validate=False)
    assert verdict.status is not None
    bad = verdict.status[:, 0] != 0
    assert bool((verdict.next_token[bad] == -1).all())
    assert not verdict.accepted_counts[bad].any()
    assert bool((verdict.accepted_nodes[bad] == -1).all())
    return [list(map(int, row)) for row in verdict.status]


def test_status_says_what_is_wrong() -> None:
    z = random(2, 5, 6)
    z[1, 0, 3] = float("nan")
    assert status_of(logits=z) == [[0, 0], [1, 0]]
    z[1, 0] = float("-inf")
    assert status_of(logits=z) == [[0, 0], [2, 0]]
    words = torch.full((2, 5, 1), 63, dtype=torch.int32)
    words[0, 0] = 0
    assert status_of(allowed_bits=words) == [[3, 0], [0, 0]]
    assert status_of(top_p=torch.tensor([1.0, 2.0])) == [[0, 0], [6, 0]]
    q = torch.softmax(random(2, 5, 6, seed=1), -1)
    assert status_of(rule="iid", draft_probs=q * 0.9) == [[12, 0], [12, 0]]
    equal = torch.tensor([[0, 1, 1, 3, 4], [0, 4, 3, 2, 1]])
    assert status_of(rule="without_replacement", tokens=equal) == [[13, 2], [0, 0]]
    q = torch.zeros(2, 5, 6)
    q[..., 5] = 1.0
    assert status_of(rule="iid", draft_probs=q) == [[14, 1], [14, 1]]
    assert status_of(tokens=torch.tensor([[0, 1, 2, 3, 4], [0, 1, 2, 6, 9]])) == [[0, 0], [16, 3]]


def test_links_that_are_no_tree_do_not_spin() -> None:
    parents = torch.tensor([[0, 5, 1, -7, 3], [2**31 - 1, 0, 1, 2, 4]], dtype=torch.int32)
    counts = torch.tensor([9, 5], dtype=torch.int32)
    words, depths, first, following = torch.ops.tokcore.tree_links(parents, counts)
    assert int(depths.max()) <= 4
    for links in (first, following):
        assert bool(((links == -1) | ((links > torch.arange(5)) & (links < 5))).all())
    out = torch.ops.tokcore.verify_tree_greedy(
        None, torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64), parents, counts, first,
        following, validate=False,
    )  # fmt: skip
    assert out[3].tolist() == [[15, 0], [15, 0]]
    assert bool((words >= 0).all())
