"""Case table of ``tree_links``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokcore.reference.tree_links import tree_links as reference_links
from tokcore.testing.cases import _sgl_kernel
from tokcore.testing.cases._sources import H200
from tokcore.testing.cases._trees import random_parents
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, TimeGoal, Variant

_SIZES = ((1, 1), (3, 2), (2, 16), (4, 63), (2, 64), (3, 65), (1, 81), (2, 127), (2, 128), (3, 129), (2, 255), (2, 256))
_SHAPES = ("random", "chain", "star", "wide")
_NAMES = ("ancestor_words", "depths", "first_child", "next_sibling")


def _cases() -> tuple[Case, ...]:
    plans = [(B, N, _SHAPES[(i + turn) % 4]) for i, (B, N) in enumerate(_SIZES) for turn in range(2)]
    return (
        *(
            Case(f"B={B},N={N},{shape}", {"B": B, "N": N, "shape": shape}, frozenset({"verify", "quick"}))
            for B, N, shape in dict.fromkeys([*plans, (0, 5, "star")])
        ),
        *(
            Case(f"full,B={B},N={N}", {"B": B, "N": N, "shape": "wide", "full": True}, frozenset(tags))
            for B, N, tags in ((1, 64, {"bench"}), (64, 64, {"bench", "bench-cuda"}), (8, 256, {"bench-cuda"}))
        ),
    )


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """parents and ragged counts."""
    p = case.parameters
    if p["B"] == 0:
        shapes = {"parents": (0, p["N"]), "counts": (0,)}
        return {name: torch.zeros(shape, dtype=torch.int32, device=device) for name, shape in shapes.items()}
    parents, counts = random_parents(p["B"], p["N"], p["shape"], torch.Generator().manual_seed(seed), not p.get("full"))
    return {"parents": parents.to(device), "counts": counts.to(device)}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    return dict(zip(_NAMES, torch.ops.tokcore.tree_links(**inputs), strict=True))


def reference(inputs: Inputs) -> Outputs:
    """Node by node."""
    return dict(zip(_NAMES, reference_links(inputs["parents"].cpu(), inputs["counts"].cpu()), strict=True))


def _squared(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """What is written without a kernel: the matrix of parents squared until it holds all ancestors; depths are its
    row sums."""
    parents, N = inputs["parents"].long(), inputs["parents"].size(1)
    own = torch.eye(N, device=parents.device)
    valid = torch.arange(N, device=parents.device) < inputs["counts"].unsqueeze(1)

    def timed() -> tuple[Tensor, Tensor]:
        index = parents.clamp(0, N - 1).unsqueeze(-1)
        edges = torch.zeros(*parents.shape, N, device=parents.device).scatter_(2, index, 1.0)
        reach = (edges * ((parents >= 0) & valid).unsqueeze(-1) + own).clamp_(max=1.0)
        for _ in range(math.ceil(math.log2(max(N, 2)))):
            reach = (reach @ reach).clamp_(max=1.0)
        return reach.bool(), reach.sum(-1).int() - 1

    return timed


def _bytes(case: Case) -> float:
    """Parents read; words, depths and links written."""
    B, N = case.parameters["B"], case.parameters["N"]
    return float(B * N * (4 + 8 * ((N + 63) // 64) + 12))


SQUARED, OURS = "squared matrices", "tokcore"
TABLE = OpTable(
    op="tree_links",
    cases=_cases(),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=reference,  # integers
    variants=(
        Variant(SQUARED, "forward", _squared, bytes=_bytes),
        Variant(
            "sgl-kernel (from a mask)",
            "forward",
            _sgl_kernel.build,
            unavailable=_sgl_kernel.unavailable,
            bytes=_bytes,
            backends=("cuda",),
        ),
        Variant(OURS, "forward", lambda _, inputs: lambda: run(inputs), peer=False, bytes=_bytes),
    ),
    goals=(
        Goal("full,B=64,N=64", "forward", OURS, SQUARED, 10.0),
        TimeGoal("full,B=64,N=64", "forward", OURS, H200, 4e-6),
    ),
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in ("up to 256 nodes", "trees of different sizes, requests without a tree")
    },
)
