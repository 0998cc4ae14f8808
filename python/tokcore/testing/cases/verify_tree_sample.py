"""Case table of ``verify_tree_sample``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.reference.verify_tree import RULES
from tokcore.reference.verify_tree import verify_tree_sample as reference_verify
from tokcore.testing.cases import _sgl_kernel
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases._sources import H200, random_source
from tokcore.testing.cases._trees import links_of, random_parents
from tokcore.testing.cases.sample import OPTIONS, on_cpu, sampling_options
from tokcore.testing.table import Case, Goal, Inputs, MemoryGoal, OpTable, Outputs, TimeGoal, Variant

SHAPES = ((1, 1, 7), (3, 5, 33), (2, 17, 100), (4, 9, 513), (2, 40, 31), (0, 4, 9), (1, 64, 1025))  # B, N, V
AGAINST_DRAFT = ("without_replacement", "iid")
_MAIN = "B=1,N=64,V=131072,bf16"
_CUDA = ("B=8,N=64,V=120000,bf16", "B=64,N=64,V=120000,bf16")


def _cases() -> tuple[Case, ...]:
    cases: dict[str, Case] = {}
    dtypes = list(DTYPES.items())
    for r, rule in enumerate(RULES):
        for n, (name, chosen) in enumerate(OPTIONS.items()):
            B, N, V = SHAPES[(n + 2 * r) % len(SHAPES)]
            dtype, short = dtypes[(n + r) % 3]
            label = ",".join(filter(None, (f"B={B},N={N},V={V}", short, rule, name)))
            parameters = {"B": B, "N": N, "V": V, "dtype": dtype, "rule": rule, **chosen}
            cases[label] = Case(label, parameters, frozenset({"verify", "quick"}))
    for label, tag in ((_MAIN, "bench"), *((label, "bench-cuda") for label in _CUDA)):
        B, N, V = (int(part.partition("=")[2]) for part in label.split(",")[:3])
        sizes = {"B": B, "N": N, "T": B * N, "V": V, "dtype": torch.bfloat16, "rule": "coupled", "drafted": True}
        cases[label] = Case(label, sizes, frozenset({tag}))
    return tuple(cases.values())


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Ragged trees whose tokens come from drafts near the target, so that paths have some length."""
    p = case.parameters
    generator, source = torch.Generator().manual_seed(seed), random_source(case, device, seed)
    B, N, V, rule = p["B"], p["N"], p["V"], p["rule"]
    logits = 3.0 * torch.randn(B, N, V, generator=source, device=source.device)
    if p.get("drafted"):  # a target that is sure of itself, so that paths are as long as those of a good drafter
        logits.scatter_add_(-1, logits.argmax(-1, keepdim=True), logits.new_full((B, N, 1), 12.0))
    shape = ("random", "wide", "star")[(N + V) % 3]
    parents, counts = _no_trees(N) if B == 0 else random_parents(B, N, shape, generator, not p.get("drafted"))
    inputs: Inputs = {"logits": logits.to(p["dtype"]), "parents": parents, "counts": counts, "rule": rule}
    tokens = torch.randint(V, (B, N), generator=generator)
    q = None if p.get("drafted") else torch.softmax(logits + 0.5 * torch.randn(B, N, V, generator=generator), -1)
    if q is not None:
        drawn = torch.multinomial(q.reshape(-1, V), 1, generator=generator).reshape(B, N) if B else tokens
        tokens[:, 1:] = drawn.gather(1, parents[:, 1:].long().clamp(0, max(N - 1, 0)))
    else:  # the likeliest tokens of the parent, by rank among its children
        for b in range(B):
            seen = [0] * N
            best = logits[b].topk(min(64, V), dim=-1).indices.cpu()
            for node in range(1, N):
                parent = int(parents[b, node])
                tokens[b, node] = best[parent, min(seen[parent], best.size(1) - 1)]
                seen[parent] += 1
    inputs["tokens"] = tokens
    inputs["draft_probs"] = q if rule in AGAINST_DRAFT else None
    inputs["seed"] = torch.randint(-(2**62), 2**62, (B,), generator=generator)
    inputs["position"] = torch.randint(10**6, (B,), generator=generator)
    inputs |= sampling_options(p, (B, N), generator)
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def _no_trees(N: int) -> tuple[Tensor, Tensor]:
    return torch.zeros(0, N, dtype=torch.int32), torch.zeros(0, dtype=torch.int32)


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    given = dict(inputs)
    tree = links_of(given.pop("parents"), given.pop("tokens"), given.pop("counts"))
    verdict = tokcore.verify_tree_sample(given.pop("logits"), tree, lossless=False, **given)
    return {
        "accepted_nodes": verdict.accepted_nodes,
        "accepted_counts": verdict.accepted_counts,
        "next_token": verdict.next_token,
    }


def reference(inputs: Inputs) -> Outputs:
    """The same tests on the same random numbers in plain PyTorch."""
    found = reference_verify(**on_cpu(inputs))
    return {name: value.to(inputs["logits"].device) for name, value in found.items()}


def _composition_call(inputs: Inputs) -> Any:
    """What one writes without tokcore: every node's probabilities, a draw from each, and those of the drafts."""
    logits = inputs["logits"]
    p = torch.softmax(logits.float(), -1)
    drawn = torch.multinomial(p.reshape(-1, p.size(-1)), 1).reshape(logits.shape[:2])
    parents = inputs["parents"].long().clamp(min=0)
    rows = p.gather(1, parents.unsqueeze(-1).expand(-1, -1, p.size(-1)))
    return drawn, rows.gather(-1, inputs["tokens"].unsqueeze(-1)), drawn.gather(1, parents) == inputs["tokens"]


def _bytes(case: Case) -> float:
    """The logits of the nodes on a path are read, most of the others are not: those of two nodes count."""
    p = case.parameters
    return float(2 * p["B"] * p["V"] * p["dtype"].itemsize)


def _prepared(_: Case, inputs: Inputs) -> Callable[[], Any]:
    given = dict(inputs)
    tree = links_of(given.pop("parents"), given.pop("tokens"), given.pop("counts"))
    logits = given.pop("logits")
    return lambda: tokcore.verify_tree_sample(logits, tree, lossless=False, **given)


TABLE = OpTable(
    op="verify_tree_sample",
    cases=_cases(),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=reference,  # nodes and tokens are equal or wrong
    variants=(
        Variant(
            "softmax + gather + multinomial",
            "forward",
            lambda _, inputs: lambda: _composition_call(inputs),
            slow=True,
            bytes=_bytes,
        ),
        Variant(
            "sgl-kernel, target only (softmax + walk)",
            "forward",
            _sgl_kernel.sample,
            unavailable=_sgl_kernel.unavailable,
            bytes=_bytes,
            backends=("cuda",),
        ),
        Variant("tokcore", "forward", _prepared, peer=False, bytes=_bytes),
    ),
    # token by token on a CPU: that of a case for a GPU would take minutes
    reference_bytes=lambda case: math.inf if "bench-cuda" in case.tags else _bytes(case),
    goals=(
        Goal(_MAIN, "forward", "tokcore", "softmax + gather + multinomial", 1 / 0.15),
        MemoryGoal(_MAIN, "forward", "tokcore", "share_of_logits", 2**20 / (64 * 131072 * 2)),
        TimeGoal(_CUDA[0], "forward", "tokcore", H200, 30e-6),
        TimeGoal(_CUDA[1], "forward", "tokcore", H200, 40e-6),
    ),
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in (
            "float32, bfloat16, float16",
            "rule coupled, without_replacement, iid, target_only, typical",
            "temperature, top_k, top_p, min_p, typical_mass",
            "repetition_penalty, presence_penalty, frequency_penalty",
            "allowed_bits",
            "options, seed and position per request",
            "up to 256 nodes, trees of different sizes, requests without a tree",
        )
    },
)
