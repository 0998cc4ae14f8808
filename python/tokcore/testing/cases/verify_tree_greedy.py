"""Case table of ``verify_tree_greedy``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.reference.verify_tree import verify_tree_greedy as reference_verify
from tokcore.testing.cases import _sgl_kernel
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases._sources import random_source
from tokcore.testing.cases._trees import links_of, random_parents
from tokcore.testing.cases.sample import on_cpu
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, Variant

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
    for B, N, V, tag in ((1, 64, 131072, "bench"), (8, 64, 120000, "bench-cuda"), (64, 64, 120000, "bench-cuda")):
        label = f"B={B},N={N},V={V},bf16"
        parameters = {"B": B, "N": N, "V": V, "dtype": torch.bfloat16, "given": "logits"}
        cases[label] = Case(label, parameters, frozenset({tag}))
    return tuple(cases.values())


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Logits with ties, trees of which every third node is the greedy token."""
    p = case.parameters
    generator, source = torch.Generator().manual_seed(seed), random_source(case, device, seed)
    B, N, V = p["B"], p["N"], p["V"]
    logits = torch.randn(B, N, V, generator=source, device=source.device).mul(2).round().to(p["dtype"])
    parents, counts = random_parents(B, N, "wide", generator, ragged=not case.timed)
    best = logits.argmax(-1).cpu()
    tokens = torch.randint(V, (B, N), generator=generator)
    for b in range(B):
        for node in range(1, int(counts[b]), 3):
            tokens[b, node] = best[b, int(parents[b, node])]
    inputs: Inputs = {"parents": parents, "tokens": tokens, "counts": counts, "best": best}
    inputs["logits"] = logits if p["given"] == "logits" else None
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    tree = links_of(inputs["parents"], inputs["tokens"], inputs["counts"])
    targets = inputs["best"] if inputs["logits"] is None else None
    verdict = tokcore.verify_tree_greedy(inputs["logits"], tree, target_tokens=targets)
    return {
        "accepted_nodes": verdict.accepted_nodes,
        "accepted_counts": verdict.accepted_counts,
        "next_token": verdict.next_token,
    }


def _bytes(nodes: int | None) -> Callable[[Case], float]:
    """Logits of all nodes, which an argmax beforehand reads, or of some on the path."""

    def nbytes(case: Case) -> float:
        p = case.parameters
        return float(p["B"] * (nodes or p["N"]) * p["V"] * p["dtype"].itemsize)

    return nbytes


def _argmax_and_walk(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """What is written by hand: the argmax on the device, the walk on the host."""
    tokens, counts = inputs["tokens"].cpu(), inputs["counts"].tolist()
    children: list[dict[int, dict[int, int]]] = []
    for parents, drafted, count in zip(inputs["parents"].tolist(), tokens.tolist(), counts, strict=True):
        found: dict[int, dict[int, int]] = {}
        for node in range(1, count):
            found.setdefault(parents[node], {}).setdefault(drafted[node], node)
        children.append(found)

    def timed() -> list[list[int]]:
        paths = []
        for b, best in enumerate(inputs["logits"].argmax(-1).tolist()):
            path = [0] if counts[b] else []
            while path and best[path[-1]] in children[b].get(path[-1], {}):
                path.append(children[b][path[-1]][best[path[-1]]])
            paths.append(path)
        return paths

    return timed


def _prepared(_: Case, inputs: Inputs) -> Callable[[], Any]:
    tree = links_of(inputs["parents"], inputs["tokens"], inputs["counts"])
    targets = inputs["best"] if inputs["logits"] is None else None
    return lambda: tokcore.verify_tree_greedy(inputs["logits"], tree, target_tokens=targets)


def _has_logits(case: Case) -> bool:
    return bool(case.parameters["given"] == "logits")


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
    reference_bytes=lambda case: math.inf if case.timed else 0.0,
    variants=(
        Variant("argmax + walk on the host", "forward", _argmax_and_walk, bytes=_bytes(None), applies=_has_logits),
        Variant(
            "sgl-kernel (argmax + walk)",
            "forward",
            _sgl_kernel.greedy,
            unavailable=_sgl_kernel.unavailable,
            bytes=_bytes(None),
            backends=("cuda",),
            applies=_has_logits,
        ),
        Variant("tokcore", "forward", _prepared, peer=False, bytes=_bytes(2), applies=_has_logits),
    ),
    goals=(Goal("B=1,N=64,V=131072,bf16", "forward", "tokcore", "argmax + walk on the host", 2.0),),
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in ("float32, bfloat16, float16", "target_tokens", "up to 256 nodes, requests without a tree")
    },
)
