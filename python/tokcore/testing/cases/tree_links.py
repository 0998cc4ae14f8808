"""Case table of ``tree_links``."""

from __future__ import annotations

import torch

from tokcore.reference.tree_links import tree_links as reference_links
from tokcore.testing.cases._trees import random_parents
from tokcore.testing.table import Case, Inputs, OpTable, Outputs

_SIZES = ((1, 1), (3, 2), (2, 16), (4, 63), (2, 64), (3, 65), (1, 81), (2, 127), (2, 128), (3, 129), (2, 255), (2, 256))
_SHAPES = ("random", "chain", "star", "wide")
_NAMES = ("ancestor_words", "depths", "first_child", "next_sibling")


def _cases() -> tuple[Case, ...]:
    plans = [(B, N, _SHAPES[(i + turn) % 4]) for i, (B, N) in enumerate(_SIZES) for turn in range(2)]
    return tuple(
        Case(f"B={B},N={N},{shape}", {"B": B, "N": N, "shape": shape}, frozenset({"verify", "quick"}))
        for B, N, shape in dict.fromkeys([*plans, (0, 5, "star")])
    )


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """parents and ragged counts."""
    p = case.parameters
    if p["B"] == 0:
        return {"parents": torch.zeros(0, p["N"], dtype=torch.int32), "counts": torch.zeros(0, dtype=torch.int32)}
    parents, counts = random_parents(p["B"], p["N"], p["shape"], torch.Generator().manual_seed(seed))
    return {"parents": parents.to(device), "counts": counts.to(device)}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    return dict(zip(_NAMES, torch.ops.tokcore.tree_links(**inputs), strict=True))


def reference(inputs: Inputs) -> Outputs:
    """Node by node."""
    return dict(zip(_NAMES, reference_links(inputs["parents"].cpu(), inputs["counts"].cpu()), strict=True))


TABLE = OpTable(
    op="tree_links",
    cases=_cases(),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=reference,  # integers
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in ("up to 256 nodes", "trees of different sizes, requests without a tree")
    },
)
