"""Case table of ``kv_compact``: every token that is left, and where the window begins."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

import tokcore
from tokcore.reference.kv_cache import read_sequence
from tokcore.reference.kv_compact import compacted
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases._kv_cache import SCHEMES, SHAPES, TIERS, fill, keys_and_values, make_cache
from tokcore.testing.cases._trees import random_parents
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, Variant

_SIZES = (1, 5, 16, 40, 70, 130, 256)
_RESIDUALS = (0, 0, 20, 256)
COMPACT, INDEX, OURS = "compact", "index and assign", "tokcore"
_MAIN = "layers=32,B=8,L=2048,Hkv=8,D=128,N=64,bf16"


def _cases() -> tuple[Case, ...]:
    cases = []
    shapes = [shape for shape in SHAPES if 0 < shape[1] < 2000]
    for n, (tier, kinds) in enumerate(TIERS.items()):
        for i, (scheme, chosen) in enumerate({"plain": {}, **SCHEMES}.items()):
            B, L, Hkv, G, D, page_size = shapes[(n + i) % len(shapes)]
            dtype, short = list(DTYPES.items())[(n + i) % 3]
            if chosen.get("rotate") and D & (D - 1):
                D = 64
            N = _SIZES[(n + 2 * i) % len(_SIZES)]
            residual = 256 if tier == "dropped" else _RESIDUALS[(n + i) % len(_RESIDUALS)]
            label = f"B={B},L={L},Hkv={Hkv},D={D},page={page_size},{short},{tier},{scheme},N={N},residual={residual}"
            sizes = {"B": B, "L": L, "Hkv": Hkv, "G": G, "D": D, "page_size": page_size, "dtype": dtype, "N": N}
            parameters = {**sizes, **kinds, **chosen, "residual": residual}
            cases.append(Case(label, parameters, frozenset({"verify", "quick"})))
    sizes = {"layers": 32, "B": 8, "L": 2048, "Hkv": 8, "D": 128, "N": 64, "dtype": torch.bfloat16}
    return (*cases[::2], Case(_MAIN, sizes, frozenset({"bench", "bench-cuda"})))


def make_verdict(tree: tokcore.TokenTree, generator: torch.Generator) -> tokcore.Verdict:
    """A random path from the root of each tree; of the last tree, none where there are several."""
    paths = []
    for b, count in enumerate(tree.counts.tolist()):
        end = int(torch.randint(max(count, 1), (), generator=generator))
        paths.append(tree.path(b, end) if count > 0 and (b == 0 or b + 1 < tree.batch) else [])
    most = max(max(map(len, paths)), 1)
    nodes = torch.tensor([path + [-1] * (most - len(path)) for path in paths], dtype=torch.int32)
    counts = torch.tensor([len(path) for path in paths], dtype=torch.int32)
    return tokcore.Verdict(nodes, counts, torch.zeros(tree.batch, dtype=torch.int64))


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Keys and values, a tree of the last tokens, and a verdict."""
    p = case.parameters
    generator = torch.Generator().manual_seed(seed + 1)
    if "bench" in case.tags:
        parents, counts = random_parents(p["B"], p["N"], "wide", generator, ragged=False)
        return {**_tree_and_verdict(parents, counts, device, generator), "device": device}
    inputs = keys_and_values(case, device, seed)
    parents, counts = random_parents(p["B"], p["N"], "random", generator)
    counts = torch.minimum(counts, inputs["lengths"].to("cpu", torch.int32))
    return {**inputs, **_tree_and_verdict(parents, counts, device, generator), "parameters": dict(p)}


def _tree_and_verdict(
    parents: torch.Tensor, counts: torch.Tensor, device: str, generator: torch.Generator
) -> dict[str, Any]:
    tree = tokcore.TokenTree(parents, torch.zeros(parents.shape, dtype=torch.int64), counts)
    verdict = make_verdict(tree, generator)
    parts = (verdict.accepted_nodes, verdict.accepted_counts, verdict.next_token)
    there = tokcore.TokenTree(tree.parents.to(device), tree.tokens.to(device), tree.counts.to(device))
    return {"tree": there, "verdict": tokcore.Verdict(*(part.to(device) for part in parts))}


def _filled(inputs: Inputs) -> tokcore.QuantizedKVCache:
    cache = make_cache(inputs["parameters"], inputs.get("scales"), str(inputs["k"].device))
    fill(cache, inputs)
    return cache


def run(inputs: Inputs) -> Outputs:
    """By sequence: keys and values in order of position, and the window's first position."""
    cache = _filled(inputs)
    tokcore.kv_compact(cache, inputs["verdict"], inputs["tree"])
    outputs: Outputs = {}
    for b in range(cache.batch):
        tokens = read_sequence(cache, 0, b, torch.float32)
        order = tokens.positions.argsort(dim=1).unsqueeze(-1).expand(-1, -1, cache.head_dim)
        outputs[f"k {b}"], outputs[f"v {b}"] = tokens.k.gather(1, order), tokens.v.gather(1, order)
        outputs[f"positions {b}"] = tokens.positions.sort(dim=1).values
        outputs[f"window start {b}"] = cache.layer(0).window_starts[b].to(torch.int64)
    return outputs


def reference(inputs: Inputs) -> Outputs:
    """The rules on the cache as it was before."""
    cache = _filled(inputs)
    verdict, tree = inputs["verdict"], inputs["tree"]
    outputs: Outputs = {}
    for b in range(cache.batch):
        path = verdict.accepted_nodes[b, : int(verdict.accepted_counts[b])].tolist()
        k, v, positions, start = compacted(cache, 0, b, int(tree.counts[b]), path)
        outputs[f"k {b}"], outputs[f"v {b}"], outputs[f"window start {b}"] = k, v, start
        outputs[f"positions {b}"] = positions.expand(cache.kv_heads, -1)
    return outputs


def _is_timed(case: Case) -> bool:
    return case.timed


def _bytes(case: Case) -> float:
    """Read and written if every accepted node moves; depth of the path drawn."""
    p = case.parameters
    return float(2 * 2 * p["layers"] * p["B"] * p["Hkv"] * p["D"] * 2 * 8)


def _prepare(case: Case, inputs: Inputs) -> Callable[[], Any]:
    """Lengths are set back before each call."""
    p = case.parameters
    sizes = (p["layers"], p["B"], p["Hkv"], p["D"], p["L"])
    cache = tokcore.QuantizedKVCache(*sizes, high="int8", low=None, device=inputs["device"])
    k = torch.zeros(p["B"], p["L"], p["Hkv"], p["D"], dtype=p["dtype"], device=inputs["device"])
    for layer in range(p["layers"]):
        cache.append(layer, k, k)
    lengths = cache.stacked_operands()[0]

    def timed() -> None:
        lengths.fill_(p["L"])
        tokcore.kv_compact(cache, inputs["verdict"], inputs["tree"])

    return timed


def _prepare_index(case: Case, inputs: Inputs) -> Callable[[], Any]:
    """What is written by hand: gather the accepted rows of every layer and put them back."""
    p, verdict = case.parameters, inputs["verdict"]
    shape = (p["B"], p["Hkv"], p["L"], p["D"])
    layers = [torch.zeros(shape, dtype=p["dtype"], device=inputs["device"]) for _ in range(2 * p["layers"])]
    prefix = p["L"] - p["N"]

    def timed() -> None:
        for b in range(p["B"]):
            count = int(verdict.accepted_counts[b])
            sources = verdict.accepted_nodes[b, :count].long() + prefix
            for layer in layers:
                layer[b, :, prefix : prefix + count] = layer[b, :, sources]

    return timed


TABLE = OpTable(
    op="kv_compact",
    cases=_cases(),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=reference,  # nothing is rounded but by the rules
    waits=True,
    reference_bytes=lambda case: math.inf if case.timed else 0.0,
    variants=(
        Variant(INDEX, COMPACT, _prepare_index, bytes=_bytes, applies=_is_timed),
        Variant(OURS, COMPACT, _prepare, peer=False, bytes=_bytes, applies=_is_timed),
    ),
    goals=(Goal(_MAIN, COMPACT, OURS, INDEX, 5.0),),
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in (
            "float32, bfloat16, float16",
            "all layers in one call",
            "nodes in sinks and window",
            "nodes in pages of numbers or codes, one tier or two",
        )
    },
)
