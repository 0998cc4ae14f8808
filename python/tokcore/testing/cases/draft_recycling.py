"""Case table of ``draft_recycling`` with ``draft_recycling_update``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tokcore.ops.draft_recycling import draft_recycling, draft_recycling_update
from tokcore.reference import draft_recycling as meaning
from tokcore.testing.cases._draft import TREES, budgets_of, case_of, generator_of, named, random_table, table_of
from tokcore.testing.table import Case, Inputs, Outputs

_MAIN = "B=1,N=81,V=32768,K=8"
CASES = (
    case_of("B=1,N=1,V=5,K=1", B=1, N=1, V=5, K=1, R=3),
    case_of("B=3,N=81,V=200,K=8", B=3, N=81, V=200, K=8, R=90),
    case_of("B=7,N=256,V=33,K=4", B=7, N=256, V=33, K=4, R=40),
    case_of("B=0,N=9,V=12,K=2", B=0, N=9, V=12, K=2, R=0),
    case_of(_MAIN, "bench", B=1, N=81, V=32768, K=8, R=81),
    case_of("B=64,N=64,V=32768,K=8", "bench-cuda", B=64, N=64, V=32768, K=8, R=4096),
)


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """A table with gaps, a random template, and rows that repeat tokens."""
    p = case.parameters
    generator = generator_of(seed)
    B, N, V, K, R = (p[name] for name in ("B", "N", "V", "K", "R"))
    parents = torch.tensor([-1] + [int(torch.randint(n, (1,), generator=generator)) for n in range(1, N)])
    inputs: Inputs = {
        "adjacency": random_table(V, K, generator),
        "roots": torch.randint(V, (B,), generator=generator),
        "budgets": budgets_of(B, N, generator) if B else torch.zeros(0, dtype=torch.int32),
        "template_parents": parents.to(torch.int32),
        "template_ranks": torch.randint(K, (N,), generator=generator, dtype=torch.int32),
        "ids": torch.randint(-1, min(V, 20), (R,), generator=generator),
        "candidates": random_table(max(R, 1), K, generator)[:R] if R >= K else torch.zeros(R, K, dtype=torch.int32),
    }
    return {name: value.to(device) for name, value in inputs.items()}


def _split(inputs: Inputs) -> tuple[Inputs, Inputs]:
    new = {name: inputs[name] for name in ("ids", "candidates")}
    return {name: value for name, value in inputs.items() if name not in new}, new


def run(inputs: Inputs) -> Outputs:
    """tokcore: the table is updated, then used."""
    given, new = _split({**inputs, "adjacency": inputs["adjacency"].clone()})
    draft_recycling_update(given["adjacency"], **new)
    return {**named(draft_recycling(**given), TREES), "adjacency": given["adjacency"]}


def reference(inputs: Inputs) -> Outputs:
    """Plain Python."""
    given, new = _split({**inputs, "adjacency": inputs["adjacency"].clone()})
    meaning.draft_recycling_update(given["adjacency"], **new)
    return {**named(meaning.draft_recycling(**given), TREES), "adjacency": given["adjacency"]}


def timed(peer: bool, inputs: Inputs) -> Callable[[], Any]:
    """The draft alone."""
    given, _ = _split(inputs)
    draft = meaning.draft_recycling if peer else draft_recycling
    return lambda: draft(**given)


TABLE = table_of(
    "draft_recycling",
    CASES,
    make_inputs,
    run,
    reference,
    _MAIN,
    ("templates up to 256 nodes", "budgets a request", "tables with unknown successors", "update with repeated tokens"),
    timed,
)
