"""Case table of ``verify_tree_greedy``."""

from __future__ import annotations

import torch
from torch import Tensor

import tokcore
from tokcore.reference.verify_tree import verify_tree_greedy as reference_verify
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases._trees import random_parents
from tokcore.testing.cases.sample import on_cpu
from tokcore.testing.table import Case, Inputs, OpTable, Outputs

SHAPES = ((1, 1, 7), (3, 5, 33), (2, 17, 100), (4, 9, 513), (2, 256, 31), (1, 64, 1025))  # B, N, V


def _cases() -> tuple[Case, ...]:
    cases: dict[str, Case] = {}
    dtypes = list(DTYPES.items())
    for i, (B, N, V) in enumerate(SHAPES):
        for turn, given in enumerate(("logits", "target_tokens")):
            dtype, short = dtypes[(i + turn) % 3]
            label = f"B={B},N={N},V={V},{short},{given}"
            parameters = {"B": B, "N": N, "V": V, "dtype": dtype, "given": given}
            cases[label] = Case(label, parameters, frozenset({"verify", "quick"}))
    return tuple(cases.values())


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Logits with ties, trees of which every third node is the greedy token."""
    p = case.parameters
    generator = torch.Generator().manual_seed(seed)
    B, N, V = p["B"], p["N"], p["V"]
    logits = torch.randn(B, N, V, generator=generator).mul(2).round().to(p["dtype"])
    parents, counts = random_parents(B, N, "wide", generator)
    best = logits.float().argmax(-1)
    tokens = torch.randint(V, (B, N), generator=generator)
    for b in range(B):
        for node in range(1, int(counts[b]), 3):
            tokens[b, node] = best[b, int(parents[b, node])]
    inputs: Inputs = {"parents": parents, "tokens": tokens, "counts": counts, "best": best}
    inputs["logits"] = logits if p["given"] == "logits" else None
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    tree = tokcore.TokenTree(inputs["parents"], inputs["tokens"], inputs["counts"])
    targets = inputs["best"] if inputs["logits"] is None else None
    verdict = tokcore.verify_tree_greedy(inputs["logits"], tree, target_tokens=targets)
    return {
        "accepted_nodes": verdict.accepted_nodes,
        "accepted_counts": verdict.accepted_counts,
        "next_token": verdict.next_token,
    }


def reference(inputs: Inputs) -> Outputs:
    """Node by node."""
    host = on_cpu(inputs)
    found = reference_verify(host["best"], host["tokens"], host["parents"], host["counts"])
    return {name: value.to(inputs["tokens"].device) for name, value in found.items()}


TABLE = OpTable(
    op="verify_tree_greedy",
    cases=_cases(),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=reference,  # integers
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in ("float32, bfloat16, float16", "target_tokens", "up to 256 nodes, requests without a tree")
    },
)
