"""Case table of ``draft_trigram`` with ``draft_trigram_update``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tokcore.ops.draft_trigram import draft_trigram, draft_trigram_update
from tokcore.reference import draft_trigram as meaning
from tokcore.testing.cases._draft import TREES, budgets_of, case_of, generator_of, named, random_probs, table_of
from tokcore.testing.table import Case, Inputs, Outputs

_MAIN = "B=1,S=65536,K=8,N=64"
_OPTIONS = ("vocab_size", "max_nodes", "simulations", "max_depth", "exploration")
CASES = (
    case_of("B=1,S=1,K=1,N=2", B=1, S=1, K=1, R=1, vocab_size=1, max_nodes=2, simulations=5),
    case_of("B=4,S=64,K=4,N=40", B=4, S=64, K=4, R=200, vocab_size=6, max_nodes=40, simulations=100),
    case_of("B=3,S=256,K=8,N=256", B=3, S=256, K=8, R=300, vocab_size=9, max_nodes=256, simulations=400, max_depth=5),
    case_of("B=2,S=64,K=3,N=30,c=0", B=2, S=64, K=3, R=90, vocab_size=5, max_nodes=30, simulations=60, exploration=0.0),
    case_of("B=2,S=64,K=3,N=30,c=8", B=2, S=64, K=3, R=90, vocab_size=5, max_nodes=30, simulations=60, exploration=8.0),
    case_of("B=0,S=8,K=2,N=5", B=0, S=8, K=2, R=3, vocab_size=4, max_nodes=5, simulations=6),
    case_of(_MAIN, "bench bench-cuda", B=1, S=65536, K=8, R=3000, vocab_size=50, max_nodes=64, simulations=128),
)


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """An empty table, rows for it whose pairs collide, and roots with and without a token before them."""
    p = case.parameters
    generator = generator_of(seed)
    B, S, K, R, V = (p[name] for name in ("B", "S", "K", "R", "vocab_size"))
    tensors = {
        "keys": torch.full((S,), -1),
        "successors": torch.full((S, K), -1, dtype=torch.int32),
        "probs": torch.zeros(S, K),
        "previous": torch.randint(V, (B,), generator=generator),
        "roots": torch.randint(V, (B,), generator=generator),
        "budgets": budgets_of(B, p["max_nodes"], generator) if B else torch.zeros(0, dtype=torch.int32),
        "contexts": torch.randint(-1 if R > 10 else 0, V, (R, 2), generator=generator),
        "candidates": torch.rand(R, max(V, K), generator=generator).argsort(1)[:, :K].to(torch.int32),
        "candidate_probs": random_probs(R, K, generator=generator),
    }
    if B > 2:
        tensors["previous"][-1] = -1
    return {name: value.to(device) for name, value in tensors.items()} | {n: p[n] for n in _OPTIONS if n in p}


_TABLE = ("keys", "successors", "probs")
_ROWS = ("contexts", "candidates", "candidate_probs")


def _split(inputs: Inputs) -> tuple[Inputs, Inputs, Inputs]:
    table: Inputs = {name: inputs[name].clone() for name in _TABLE}
    rest = {name: value for name, value in inputs.items() if name not in (*_TABLE, *_ROWS)}
    return table, {name: inputs[name] for name in _ROWS}, rest


def run(inputs: Inputs) -> Outputs:
    """tokcore: the table is filled, then searched."""
    table, rows, rest = _split(inputs)
    draft_trigram_update(**table, **rows)
    return {**named(draft_trigram(**table, **rest), (*TREES, "joint")), **table}


def reference(inputs: Inputs) -> Outputs:
    """Plain Python."""
    table, rows, rest = _split(inputs)
    meaning.draft_trigram_update(**table, **rows)
    return {**named(meaning.draft_trigram(**table, **rest), (*TREES, "joint")), **table}


def timed(peer: bool, inputs: Inputs) -> Callable[[], Any]:
    """The search alone, in a table that is filled."""
    table, rows, rest = _split(inputs)
    draft_trigram_update(**table, **rows)
    search = meaning.draft_trigram if peer else draft_trigram
    return lambda: search(**table, **rest)


TABLE = table_of(
    "draft_trigram",
    CASES,
    make_inputs,
    run,
    reference,
    _MAIN,
    ("budgets a request", "exploration", "roots without a token before them", "update with pairs that collide"),
    timed,
)
