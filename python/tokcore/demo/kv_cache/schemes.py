"""The caches that the act compares, and how each of them takes a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokcore import KV_PRESETS, QuantizedKVCache, kv_balancer, kv_channel_scale, kv_retier, kv_saliency
from tokcore.demo.cached_model import CachedTransformer
from tokcore.demo.model import Transformer

PROBE_SHARE = 0.05  # of the prompt: as many of its last rows, and as many at random (ZipCache)
LEAST_PROBES = 8


@dataclass(frozen=True)
class Scheme:
    """A kind of cache: options of :class:`QuantizedKVCache`, and what is done once the prompt is in it.

    ``retier``: arguments of :func:`kv_retier`; empty: tokens stay where they were put. ``evicts``: what is not
    important is dropped instead of retained. ``channel_scales``: keys are divided by MiKV's balancer, values by
    ZipCache's channel scale, found on training text.
    """

    name: str
    options: Mapping[str, Any]
    retier: Mapping[str, float] = field(default_factory=dict)
    evicts: bool = False
    channel_scales: tuple[str, ...] = ()

    def cache(self, batch: int, capacity: int, sizes: Mapping[str, Any], **changes: Any) -> QuantizedKVCache:
        """An empty cache; ``sizes`` are layers, kv_heads, head_dim and dtype."""
        return QuantizedKVCache(batch=batch, capacity=capacity, **{**sizes, **self.options, **changes})


def preset_scheme(name: str, **changes: Any) -> Scheme:
    """A named preset as a scheme."""
    preset = KV_PRESETS[name]
    scaled = {"mikv": ("k",), "zipcache": ("v",)}.get(name, ())
    return Scheme(name, {**preset.options, **changes}, preset.retier, channel_scales=scaled)


BF16 = Scheme("bf16", {"high": "bf16", "low": None})
INT4_ROTATED = Scheme("int4 + rotation", {"high": "int4", "low": None, "rotate": True})
MIXED = preset_scheme("mikv")

QUALITY_SCHEMES = (
    BF16,
    preset_scheme("int8"),
    preset_scheme("int4"),
    INT4_ROTATED,
    MIXED,
    preset_scheme("zipcache"),
    preset_scheme("zipvl"),
    preset_scheme("kivi"),
)
TIMED_SCHEMES = (BF16, preset_scheme("int8"), INT4_ROTATED, MIXED)


def page_bytes(cache: QuantizedKVCache, tier: str) -> int:
    """Bytes of one tier's tensors, over all layers."""
    parts = (getattr(cache.layer(layer), tier) for layer in range(cache.layers))
    return sum(tensor.nbytes for part in parts if part is not None for tensor in part.tensors())


class Calibration:
    """Channel scales of a model's keys and values, per layer, from one pass over text [B, T]."""

    def __init__(self, model: Transformer, text: Tensor) -> None:
        found: dict[str, list[Tensor]] = {"k": [], "v": []}
        run = cached(model, BF16, text.size(0), text.size(1), None)

        def observe(_: int, q: Tensor, k: Tensor, v: Tensor) -> None:
            found["k"].append(kv_balancer(q, k))
            found["v"].append(kv_channel_scale(v))

        run.observer = observe
        run(text)
        self.scales = {kind: torch.stack(parts) for kind, parts in found.items()}


def cached(
    model: Transformer, scheme: Scheme, batch: int, capacity: int, calibration: Calibration | None, **changes: Any
) -> CachedTransformer:
    """The model over an empty cache of ``scheme``; without a calibration the window holds everything."""
    if calibration is None:
        changes["residual"] = capacity

    def make(**sizes: Any) -> QuantizedKVCache:
        cache = scheme.cache(batch, capacity, sizes, **changes)
        if calibration is not None:
            cache.set_channel_scales(
                *(calibration.scales[kind] if kind in scheme.channel_scales else None for kind in "kv")
            )
        return cache

    return CachedTransformer(model, make)


def take_prompt(run: CachedTransformer, scheme: Scheme, prompt: Tensor, seed: int) -> Tensor:
    """Runs ``prompt`` [B, T] at once, then sorts what lies in pages by its importance; hidden states [B, T, C]."""
    seen: list[tuple[Tensor, Tensor]] = []
    run.observer = lambda _, q, k, __: seen.append((q, k))
    hidden = run(prompt)
    run.observer = None
    if not scheme.retier:
        return hidden
    probes = probe_rows(prompt.size(1), seed)
    for layer, (q, k) in enumerate(seen):
        scores = kv_saliency(q[:, probes], k, probes.expand(prompt.size(0), -1))
        kv_retier(run.cache, layer, scores, **scheme.retier)
        if scheme.evicts:
            low = run.cache.layer(layer).low
            assert low is not None
            low.page_counts.zero_()  # no query reaches these pages any more
    return hidden


def probe_rows(count: int, seed: int) -> Tensor:
    """Rows of the prompt that probe: its last ones and random others, in order; int64."""
    share = min(count // 2, max(LEAST_PROBES, round(PROBE_SHARE * count)))
    others = torch.randperm(count - share, generator=torch.Generator().manual_seed(seed))[:share]
    return torch.cat([others.sort().values, torch.arange(count - share, count)])
