"""Case table of ``kv_retier``: where every token lies afterwards, and what it is worth there."""

from __future__ import annotations

import torch

import tokcore
from tokcore.reference.kv_cache import read_tier
from tokcore.reference.kv_retier import retiered
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases._kv_cache import SCHEMES, SHAPES, fill, keys_and_values, make_cache
from tokcore.testing.table import Case, Inputs, OpTable, Outputs

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
    return tuple(cases)


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Keys, values, scores with ties, and how the cache is made."""
    p = case.parameters
    generator = torch.Generator().manual_seed(seed + 1)
    scores = torch.randn(p["B"], p["Hkv"], p["L"], generator=generator)
    scores = (scores * 4).round() / 4
    return {**keys_and_values(case, device, seed), "scores": scores.to(device), "parameters": dict(p)}


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
    waits=True,
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in ("float32, bfloat16, float16", "ratio", "mass", "codes or numbers in either tier")
    },
)
