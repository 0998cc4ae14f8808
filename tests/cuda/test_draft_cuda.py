"""The draft builders on the CUDA kernels: their case tables, the trees of the CPU, and values that nobody checked."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
sys.path.insert(0, str(Path(__file__).parents[1] / "speculative"))

import draft_simt as cuda
import kv_simt
import pytest
import torch
from simt_support import POLICIES, Policy
from support import assert_error_rule
from test_draft_builders import (
    test_ngrams_prefer_long_and_recent_matches as test_ngrams_prefer_long_and_recent_matches,
)
from test_draft_builders import test_of_equal_tokens_the_last_row_stays as test_of_equal_tokens_the_last_row_stays
from test_draft_builders import (
    test_recycling_takes_a_prefix_of_the_template_and_leaves_unknown_branches_out as test_recycling_takes_a_prefix,
)

import tokcore
from tokcore.testing import tables
from tokcore.testing.table import Inputs, Outputs

BUILDERS = ("draft_heap", "draft_ngram", "draft_recycling", "draft_trigram")
TABLES = {op: tables()[op] for op in (*BUILDERS, "draft_candidates")}
NAMES = [(op, case.name) for op, table in TABLES.items() for case in table.cases if "quick" in case.tags]
__all__ = ["test_recycling_takes_a_prefix"]


@pytest.fixture
def on_the_cpu() -> None:
    """The operators keep their CPU kernels."""


@pytest.fixture(autouse=True)
def _kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    if "on_the_cpu" in request.fixturenames:
        yield
        return
    with cuda.in_place_of_the_cpu():
        yield


@pytest.mark.parametrize(("op", "name"), NAMES)
def test_case(op: str, name: str) -> None:
    table = TABLES[op]
    assert_error_rule(table, table.make_inputs(table.case(name), "cpu", 0))


@pytest.mark.parametrize("op", BUILDERS)
@pytest.mark.usefixtures("on_the_cpu")
def test_trees_are_those_of_the_cpu_bit_for_bit(op: str) -> None:
    table = TABLES[op]
    for seed, case in enumerate(case for case in table.cases if "quick" in case.tags):
        inputs = table.make_inputs(case, "cpu", 40 + seed)
        expected = table.run(inputs)
        with cuda.in_place_of_the_cpu():
            found = table.run(inputs)
        for name, value in expected.items():
            assert torch.equal(found[name].view(torch.uint8), value.view(torch.uint8)), (case.name, name)
        tokcore.TokenTree(found["parents"], found["tokens"], found["counts"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.usefixtures("on_the_cpu")
def test_candidates_of_rows_that_lie_anyhow(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(2)
    for V, k, spread in ((1, 1, 1.0), (33, 33, 1.0), (700, 64, 0.2), (2500, 5, 3.0)):
        wide = (spread * torch.randn(3, V + 13, generator=generator)).to(dtype)
        wide[1] = (4.0 * wide[1]).round() / 4.0  # ties
        wide[2] = wide[2].sort().values  # every logit is greater than all before it
        for first in (0, 3):
            logits = wide[:, first : first + V]
            tokens, probs = torch.ops.tokcore.draft_candidates(logits, k, temperature=0.7)
            found, weights = cuda.draft_candidates(logits, k, temperature=0.7)
            assert torch.equal(found, tokens)
            torch.testing.assert_close(weights, probs, rtol=2e-5, atol=1e-9)
            assert torch.equal(cuda.draft_candidates(logits, k, probs=False)[0], tokens)


def some(op: str, seed: int = 5) -> Inputs:
    cases = [case for case in TABLES[op].cases if "quick" in case.tags]
    return TABLES[op].make_inputs(cases[2 if op == "draft_candidates" else 1], "cpu", seed)


def bits(outputs: Outputs) -> dict[str, torch.Tensor]:
    return {name: value.view(torch.uint8) for name, value in outputs.items()}


@pytest.mark.parametrize("op", TABLES)
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_order_of_threads_changes_no_bit(op: str, policy: Policy) -> None:
    inputs = some(op)
    expected = bits(TABLES[op].run(inputs))
    policy.use()
    for name, value in bits(TABLES[op].run(inputs)).items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("op", TABLES)
def test_guard_pages_on_the_other_side(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = some(op)
    expected = bits(TABLES[op].run(inputs))
    monkeypatch.setattr(kv_simt.Arrays, "placement", "start")
    for name, value in bits(TABLES[op].run(inputs)).items():
        assert torch.equal(value, expected[name]), name


# ---- values that nobody checked --------------------------------------------------------------------------------------


def changed(inputs: Inputs, name: str, index: Any, value: int) -> Inputs:
    tensor = inputs[name].clone()
    tensor[index] = value
    return {**inputs, name: tensor}


@pytest.mark.parametrize(
    ("op", "name", "index", "value"),
    [
        ("draft_recycling", "roots", 0, -1),
        ("draft_recycling", "roots", 0, 2**40),
        ("draft_recycling", "budgets", 0, 82),
        ("draft_recycling", "budgets", 0, -1),
        ("draft_ngram", "lengths", 0, -3),
        ("draft_ngram", "lengths", 0, 10**6),
        ("draft_ngram", "budgets", 0, 257),
        ("draft_heap", "asked_counts", 0, 21),
        ("draft_heap", "asked_parents", (0, 5), 5),
        ("draft_heap", "asked_parents", (0, 5), -7),
        ("draft_heap", "asked_ranks", (0, 3), 8),
        ("draft_heap", "asked_ranks", (0, 3), 2**31 - 1),
        ("draft_heap", "budgets", 0, -2),
        ("draft_trigram", "roots", 0, 6),
        ("draft_trigram", "previous", 0, -2),
        ("draft_trigram", "budgets", 0, 41),
    ],
)
def test_a_request_with_values_out_of_range_gets_an_empty_tree(op: str, name: str, index: Any, value: int) -> None:
    inputs = some(op)
    good, found = TABLES[op].run(inputs), TABLES[op].run(changed(inputs, name, index, value))
    assert good["counts"][0] > 0
    assert found["counts"][0] == 0
    assert bool((found["parents"][0] == -1).all())
    assert bool((found["tokens"][0] == 0).all())
    for part in ("parents", "tokens", "counts"):  # of the other requests
        assert torch.equal(found[part][1:], good[part][1:]), part


def test_a_candidate_that_is_asked_at_twice_gets_an_empty_tree() -> None:
    inputs = some("draft_heap")
    for name in ("asked_parents", "asked_ranks"):
        inputs[name][0, 9] = inputs[name][0, 8]
    assert TABLES["draft_heap"].run(inputs)["counts"][0] == 0


@pytest.mark.parametrize(("name", "index", "value"), [("parents", 0, 0), ("parents", 7, 7), ("ranks", 4, 8)])
def test_what_is_no_template_gives_empty_trees(name: str, index: int, value: int) -> None:
    found = TABLES["draft_recycling"].run(changed(some("draft_recycling"), f"template_{name}", index, value))
    assert found["counts"].tolist() == [0, 0, 0]


def test_updates_leave_out_rows_without_a_token() -> None:
    adjacency = torch.zeros(4, 3, dtype=torch.int32)
    rows = torch.arange(12, dtype=torch.int32).reshape(4, 3)
    cuda.draft_recycling_update(adjacency, torch.tensor([4, 1, 2**50, -5]), rows)
    assert adjacency.tolist() == [[0, 0, 0], [3, 4, 5], [0, 0, 0], [0, 0, 0]]
    table = (torch.full((2,), -1), torch.full((2, 3), -1, dtype=torch.int32), torch.zeros(2, 3))
    pairs = torch.tensor([[2**31, 1], [1, 2**40], [-1, 3], [3, -1]])
    cuda.draft_trigram_update(*table, pairs, rows, torch.ones(4, 3))
    assert table[0].tolist() == [-1, -1]
    assert bool((table[2] == 0).all())


@pytest.mark.usefixtures("on_the_cpu")
def test_a_history_of_one_token_and_tables_of_infinities() -> None:
    history, whole = torch.zeros(1, 700, dtype=torch.int64), torch.tensor([700], dtype=torch.int32)
    options = {"max_nodes": 256, "longest": 64, "shortest": 1, "max_depth": 200}
    expected = torch.ops.tokcore.draft_ngram(history, whole, whole.clamp(max=256), **options)
    found = cuda.draft_ngram(history, whole, whole.clamp(max=256), **options)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert int(found[2]) == 201
    # PUCT with scores that are infinite or NaN: what comes first stays.
    inputs = some("draft_trigram")
    table = {name: inputs[name].clone() for name in ("keys", "successors", "probs")}
    rows = [inputs[name] for name in ("contexts", "candidates", "candidate_probs")]
    torch.ops.tokcore.draft_trigram_update(*table.values(), *rows)
    table["probs"][::3, 1:] = torch.inf
    table["probs"][1::3, ::2] = torch.nan
    rest = {name: inputs[name] for name in ("previous", "roots", "budgets")}
    options = {name: inputs[name] for name in ("vocab_size", "max_nodes", "simulations")}
    for exploration in (0.0, 1.0):
        call = {**table, **rest, **options, "exploration": exploration}
        trees, theirs = cuda.draft_trigram(**call), torch.ops.tokcore.draft_trigram(**call)
        assert all(torch.equal(a, b) for a, b in zip(trees[:3], theirs[:3], strict=True))
