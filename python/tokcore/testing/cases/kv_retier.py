"""Case table of ``kv_retier``: where every token lies afterwards, and what it is worth there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.reference.kv_cache import read_tier
from tokcore.reference.kv_retier import retiered
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases._kv_cache import SCHEMES, SHAPES, fill, keys_and_values, make_cache
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, Variant

RETIER, EAGER, OURS = "retier", "eager PyTorch: sort, gather, quantize", "tokcore int8/int2"
_MAIN = "B=1,Hkv=8,D=128,L=32768,bf16,ratio=0.2"
_TIERS = {"int8+int2": ("int8", "int2"), "number+int4": ("number", "int4"), "int4+number": ("int4", "number")}


def _cases() -> tuple[Case, ...]:
    cases = []
    shapes = [shape for shape in SHAPES if shape[1] > 250]
    for n, (tier, (high, low)) in enumerate(_TIERS.items()):
        for i, (scheme, chosen) in enumerate({"plain": {}, **SCHEMES}.items()):
            B, L, Hkv, G, D, page_size = shapes[(n + i) % len(shapes)]
            dtype, short = list(DTYPES.items())[(n + i) % 3]
            if chosen.get("rotate") and D & (D - 1):
                D = 64
            ratio = (0.2, 0.5, 0.0, 1.0)[(n + i) % 4]
            label = f"B={B},L={L},Hkv={Hkv},D={D},page={page_size},{short},{tier},{scheme},ratio={ratio}"
            sizes = {"B": B, "L": L, "Hkv": Hkv, "G": G, "D": D, "page_size": page_size, "dtype": dtype}
            parameters = {"residual": 20, **sizes, "high": high, "low": low, "ratio": ratio, **chosen}
            cases.append(Case(label, parameters, frozenset({"verify", "quick"})))
    sizes = {"B": 1, "L": 32768, "Hkv": 8, "D": 128, "dtype": torch.bfloat16, "ratio": 0.2}
    return (*cases, Case(_MAIN, sizes, frozenset({"bench", "bench-cuda"})))


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Keys, values, scores with ties, and how the cache is made."""
    p = case.parameters
    generator = torch.Generator().manual_seed(seed + 1)
    scores = torch.randn(p["B"], p["Hkv"], p["L"], generator=generator)
    scores = (scores * 4).round() / 4
    return {**keys_and_values(case, device, seed), "scores": scores.to(device), "parameters": dict(p)}


def _is_timed(case: Case) -> bool:
    return case.timed


def _bytes(case: Case) -> float:
    """A fifth of the keys and values in 8 bits, the others in 2: read and written."""
    p = case.parameters
    return float(4 * p["B"] * p["L"] * p["Hkv"] * p["D"]) * 0.4


def _prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """Two sets of scores in turn, so that every call has something to move."""
    B, L, Hkv, D = inputs["k"].shape
    tiers: dict[str, Any] = {"high": "int8", "low": "int2", "high_ratio": 0.2}
    cache = tokcore.QuantizedKVCache(1, B, Hkv, D, L, **tiers, device=inputs["k"].device)
    cache.append(0, inputs["k"], inputs["v"])
    turns = itertools.cycle((inputs["scores"], -inputs["scores"]))
    return lambda: tokcore.kv_retier(cache, 0, next(turns), ratio=inputs["parameters"]["ratio"])


def _prepare_eager(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """From bf16 keys and values: what is written by hand where nothing moves codes."""
    count = int(inputs["parameters"]["ratio"] * inputs["k"].size(1))

    def timed() -> list[Tensor]:
        order = inputs["scores"].argsort(-1, descending=True).transpose(1, 2).unsqueeze(-1)
        found = []
        for name in "kv":
            x = inputs[name].gather(1, order.expand_as(inputs[name]))
            for part, levels in ((x[:, :count], 255), (x[:, count:], 3)):
                low, high = part.aminmax(dim=-1, keepdim=True)
                scale = (high - low).clamp(min=1e-6) / levels
                found.append(((part - low) / scale).round().to(torch.uint8))
        return found

    return timed


def _filled(inputs: Inputs) -> tokcore.QuantizedKVCache:
    cache = make_cache(inputs["parameters"], inputs.get("scales"), str(inputs["k"].device))
    fill(cache, inputs)
    return cache


def run(inputs: Inputs) -> Outputs:
    """By sequence, head and tier: positions, keys and values."""
    cache = _filled(inputs)
    tokcore.kv_retier(cache, 0, inputs["scores"], ratio=inputs["parameters"]["ratio"])
    outputs: Outputs = {}
    for b in range(cache.batch):
        for name in ("high", "low"):
            tokens = read_tier(cache, 0, name, b, torch.float32)
            for head in range(cache.kv_heads):
                outputs[f"positions {name} {b} {head}"] = tokens.positions[head]
                outputs[f"k {name} {b} {head}"] = tokens.k[head]
                outputs[f"v {name} {b} {head}"] = tokens.v[head]
    return outputs


def reference(inputs: Inputs) -> Outputs:
    """The rules on the cache as it was before."""
    cache = _filled(inputs)
    outputs: Outputs = {}
    for b in range(cache.batch):
        for head in range(cache.kv_heads):
            found = retiered(cache, 0, b, head, inputs["scores"][b, head], inputs["parameters"]["ratio"])
            for name, (positions, k, v) in found.items():
                outputs[f"positions {name} {b} {head}"] = positions
                outputs[f"k {name} {b} {head}"] = k
                outputs[f"v {name} {b} {head}"] = v
    return outputs


TABLE = OpTable(
    op="kv_retier",
    cases=_cases(),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=reference,  # nothing is rounded but by the rules
    reference_bytes=lambda case: math.inf if case.timed else 0.0,
    variants=(
        Variant(EAGER, RETIER, _prepare_eager, bytes=_bytes, applies=_is_timed, slow=True),
        Variant(OURS, RETIER, _prepare, peer=False, bytes=_bytes, applies=_is_timed),
    ),
    goals=(Goal(_MAIN, RETIER, OURS, EAGER, 2.0),),
    waits=True,
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in ("float32, bfloat16, float16", "ratio", "mass", "codes or numbers in either tier")
    },
)
