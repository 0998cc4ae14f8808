"""What the case tables of the KV cache share: caches with keys that have outlier channels, and their options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases._sources import random_source
from tokcore.testing.table import Case, Inputs

# B, L (tokens of the longest sequence), Hkv, G, D, page size: one token, page and residual edges, every head size.
SHAPES = (
    (2, 0, 1, 2, 64, 16),
    (1, 1, 2, 1, 32, 64),
    (2, 65, 2, 4, 128, 64),
    (3, 129, 1, 8, 96, 32),
    (1, 257, 2, 16, 64, 128),
    (2, 700, 2, 4, 128, 64),
    (1, 640, 1, 3, 256, 16),
    (1, 2500, 1, 4, 128, 128),
    (2, 333, 3, 1, 160, 32),
)
TIERS: dict[str, dict[str, Any]] = {
    "number": {"high": "number", "low": None},
    "int8": {"high": "int8", "low": None},
    "int4": {"high": "int4", "low": None},
    "int2": {"high": "int2", "low": None},
    "k8v4": {"high": ("int8", "int4"), "low": None},
    "k2v8": {"high": ("int2", "int8"), "low": None},
    "int8+int2": {"high": "int8", "low": "int2"},
    "number+int4": {"high": "number", "low": "int4"},
    "dropped": {"high": None, "low": None},
}
SCHEMES: dict[str, dict[str, Any]] = {
    "symmetric": {"symmetric": True},
    "by-channel": {"k_axis": "channel"},
    "values-by-channel": {"v_axis": "channel", "v_group": 16},
    "both-by-channel": {"k_axis": "channel", "v_axis": "channel"},
    "kivi-groups": {"k_axis": "channel", "group": 16, "v_group": 32},
    "groups": {"group": 32, "v_group": 16},
    "rotated": {"rotate": True},
    "channel-scales": {"channel_scales": True},
    "no-window": {"residual": 0, "sinks": 0},
    "many-sinks": {"residual": 33, "sinks": 17},
}
_CACHE = (
    *("high", "low", "k_axis", "v_axis", "group", "v_group", "symmetric", "rotate", "residual", "sinks", "page_size"),
)
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def plans(extra: Mapping[str, Mapping[str, Any]], rounds: int = 1) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name, parameters): every tier with every scheme; shapes, dtypes and options of the op in turn."""
    dtypes = list(DTYPES.items())
    schemes = {"plain": {}, **SCHEMES}
    extras = {"": {}, **extra}
    count = 0
    for turn in range(rounds):
        for tier, kinds in TIERS.items():
            for scheme, chosen in schemes.items():
                B, L, Hkv, G, D, page_size = SHAPES[(count + turn) % len(SHAPES)]
                dtype, short = dtypes[(count // 2 + turn) % len(dtypes)]
                option = list(extras)[(count + turn) % len(extras)]
                count += 1
                if chosen.get("rotate") and D & (D - 1):
                    D = 64
                sizes = {"B": B, "L": L, "Hkv": Hkv, "G": G, "D": D, "page_size": page_size, "dtype": dtype}
                label = ",".join(filter(None, (f"B={B},L={L},Hkv={Hkv},G={G},D={D},page={page_size}", short)))
                label = ",".join(filter(None, (label, tier, scheme, option)))
                yield label, {**sizes, **kinds, **chosen, **extras[option]}


def make_cache(parameters: Mapping[str, Any], scales: Sequence[Tensor] | None, device: str) -> tokcore.QuantizedKVCache:
    """An empty cache of one layer."""
    p = parameters
    options = {name: p[name] for name in _CACHE if name in p}
    number = NAMES[p["dtype"]]
    for name in ("high", "low"):
        options[name] = number if options[name] == "number" else options[name]
    cache = tokcore.QuantizedKVCache(
        1, p["B"], p["Hkv"], p["D"], max(p["L"] + 20, 1), dtype=p["dtype"], device=device, **options
    )
    if scales is not None:
        cache.set_channel_scales(*(scale.unsqueeze(0) for scale in scales))
    return cache


def keys_and_values(case: Case, device: str, seed: int) -> Inputs:
    """k, v [B, L, Hkv, D], with outlier channels in cases to verify; ragged lengths [B]; channel scales if wanted."""
    p = case.parameters
    generator = random_source(case, device, seed)
    home = generator.device
    B, L, Hkv, D = p["B"], p["L"], p["Hkv"], p["D"]
    k = torch.randn(B, L, Hkv, D, generator=generator, device=home)
    if "verify" in case.tags:
        k[..., D // 3] *= 8.0
    v = torch.randn(B, L, Hkv, D, generator=generator, device=home) + 0.25
    lengths = torch.randint(L // 2, L + 1, (B,), generator=generator, device=home).cpu()
    lengths[0] = L
    inputs: Inputs = {"k": k.to(p["dtype"]).to(device), "v": v.to(p["dtype"]).to(device), "lengths": lengths}
    if p.get("channel_scales"):
        scales = [0.5 + torch.rand(Hkv, D, generator=generator, device=home) for _ in range(2)]
        inputs["scales"] = [scale.to(device) for scale in scales]
    return inputs


def fill(cache: tokcore.QuantizedKVCache, inputs: Inputs) -> None:
    """Appends everything in two calls, the first of two thirds."""
    k, v, lengths = inputs["k"], inputs["v"], inputs["lengths"]
    first = k.size(1) * 2 // 3
    cache.append(0, k[:, :first], v[:, :first], lengths.clamp(max=first))
    cache.append(0, k[:, first:], v[:, first:], (lengths - first).clamp(min=0))


def eager_codes(x: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of the rows of x, a byte each, with scales and zeros, in x's dtype: what people write."""
    low, high = x.aminmax(dim=-1, keepdim=True)
    scale = (high - low).clamp(min=1e-6) / levels
    return ((x - low) / scale).round().clamp(0, levels).to(torch.uint8), scale, low
