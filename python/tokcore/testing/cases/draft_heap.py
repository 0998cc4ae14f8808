"""Case table of ``draft_heap``."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcore.ops.draft_heap import draft_heap
from tokcore.reference.draft_heap import draft_heap as reference_heap
from tokcore.testing.cases._draft import TREES, budgets_of, case_of, generator_of, named, random_probs, table_of
from tokcore.testing.table import Case, Inputs, Outputs

_MAIN = "B=1,M=64,K=8,N=64"
_OPTIONS = ("max_nodes", "value", "threshold")
CASES = (
    case_of("B=1,M=1,K=1,N=1", B=1, M=1, K=1, max_nodes=1),
    case_of("B=4,M=20,K=8,N=64", B=4, M=20, K=8, max_nodes=64),
    case_of("B=4,M=20,K=8,N=64,joint", B=4, M=20, K=8, max_nodes=64, value="joint"),
    case_of("B=3,M=256,K=5,N=256", B=3, M=256, K=5, max_nodes=256),
    case_of("B=3,M=30,K=64,N=100,threshold", B=3, M=30, K=64, max_nodes=100, threshold=0.05),
    case_of("B=2,M=40,K=4,N=90,equal", B=2, M=40, K=4, max_nodes=90, value="joint", equal=True),
    case_of("B=0,M=3,K=2,N=4", B=0, M=3, K=2, max_nodes=4),
    case_of(_MAIN, "bench bench-cuda", B=1, M=64, K=8, max_nodes=64),
)


def _asked(M: int, K: int, generator: torch.Generator) -> tuple[list[int], list[int]]:
    """Asked nodes, each another candidate of a lower one."""
    free = [(0, rank) for rank in range(K)]
    parents, ranks = [-1], [0]
    for node in range(1, M):
        if not free:
            return parents + [0] * (M - node), ranks + [0] * (M - node)
        parent, rank = free.pop(int(torch.randint(len(free), (1,), generator=generator)))
        parents.append(parent)
        ranks.append(rank)
        free += [(node, other) for other in range(K)]
    return parents, ranks


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """What a draft model answered at some nodes; lists that end early, equal and vanishing probabilities."""
    p = case.parameters
    generator = generator_of(seed)
    B, M, K = p["B"], p["M"], p["K"]
    asked = [_asked(M, K, generator) for _ in range(B)]
    probs = random_probs(B, M, K, generator=generator)
    if p.get("equal"):
        probs = (probs * 4).round() / 8
    candidates = torch.randint(1000, (B, M, K), generator=generator, dtype=torch.int32)
    candidates[torch.rand(B, M, K, generator=generator) > 0.95] = -1
    counts = torch.randint(0, M + 1, (B,), generator=generator, dtype=torch.int32)
    counts[:1] = M
    if K == 1:
        counts = counts.clamp(max=1)
    tensors: dict[str, Tensor] = {
        "candidates": candidates,
        "probs": probs,
        "asked_parents": torch.tensor([a[0] for a in asked], dtype=torch.int32).reshape(B, M),
        "asked_ranks": torch.tensor([a[1] for a in asked], dtype=torch.int32).reshape(B, M),
        "asked_counts": counts,
        "roots": torch.randint(1000, (B,), generator=generator),
        "budgets": budgets_of(B, p["max_nodes"], generator) if B else counts,
    }
    return {name: value.to(device) for name, value in tensors.items()} | {n: p[n] for n in _OPTIONS if n in p}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    return named(draft_heap(**inputs), (*TREES, "joint", "sources"))


def reference(inputs: Inputs) -> Outputs:
    """Plain Python."""
    return named(reference_heap(**inputs), (*TREES, "joint", "sources"))


TABLE = table_of(
    "draft_heap",
    CASES,
    make_inputs,
    run,
    reference,
    _MAIN,
    ("value residual (DySpec), joint (Eagle-2)", "threshold", "budgets a request", "up to 256 nodes"),
)
