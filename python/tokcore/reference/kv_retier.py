"""The meaning of ``kv_retier``: which tokens lie in which tier afterwards, and what they are worth there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokcore.reference.kv_cache import page_numbers
from tokcore.reference.kv_quantize import dequantize, quantize, rotate, rotate_back

if TYPE_CHECKING:
    from tokcore.quantized_kv_cache import Layer, QuantizedKVCache, Tier


def high_positions(scores: Tensor, positions: Tensor, count: int) -> Tensor:
    """The ``count`` positions of highest score of one head, ascending; equal scores by position, NaN first.

    scores [N] by position; positions [n], those in pages.
    """
    ordered = positions.sort().values
    chosen = scores[ordered].double()
    chosen = torch.where(chosen.isnan(), torch.inf, chosen.clamp(max=torch.finfo(torch.float64).max))
    ranked = torch.sort(chosen, descending=True, stable=True).indices
    return ordered[ranked[:count]].sort().values


def high_page_count(state: Layer, b: int, ratio: float) -> int:
    """Pages of the high tier of sequence b: what ``ratio`` asks for within the room of both tiers."""
    assert state.high is not None
    assert state.low is not None
    total = int(state.high.page_counts[b] + state.low.page_counts[b])
    most = min(total, state.high.page_table.size(1))
    return min(max(math.ceil(total * ratio), total - state.low.page_table.size(1)), most)


def _stored(cache: QuantizedKVCache, tier: Tier, b: int, head: int, kind: str) -> tuple[Tensor, Tensor]:
    """fp32 rows of a head as they are stored, and their positions."""
    used = tier.page_table[b, : int(tier.page_counts[b])].long()
    parts = [getattr(tier, f"{kind}_{part}") for part in ("scale", "zero")]
    chosen = [part[used] if part.dim() > 1 else part for part in parts]
    axis = cache.k_axis if kind == "k" else cache.v_axis
    pages = getattr(tier, f"{kind}_pages")[used]
    rows = page_numbers(pages, chosen[0], chosen[1], cache.head_dim, axis, kind == "k", torch.float32)
    positions = tier.positions.to(torch.int64)[used][:, head].reshape(-1)
    return rows[:, head].reshape(-1, cache.head_dim), positions


def is_coded(tier: Tier) -> bool:
    """Whether the tier's pages hold codes."""
    return tier.k_pages.dtype == torch.uint8


def coded_again(cache: QuantizedKVCache, tier: Tier, kind: str, rows: Tensor, kept: Tensor) -> Tensor:
    """What pages of the tier make of rows [n, D]; ``kept`` rows were there before."""
    pages, scale = getattr(tier, f"{kind}_pages"), getattr(tier, f"{kind}_scale")
    D = cache.head_dim
    bits, axis = pages.size(-1) * 8 // D, cache.k_axis if kind == "k" else cache.v_axis
    group = D // scale.size(2) if axis == "token" else cache.page_size // scale.size(2)
    symmetric = getattr(tier, f"{kind}_zero").numel() == 0
    found = dequantize(*quantize(rows, bits, axis, group, symmetric), bits, axis, group)
    return torch.where(kept.unsqueeze(-1), rows, found) if axis == "token" else found


def retiered(
    cache: QuantizedKVCache, layer: int, b: int, head: int, scores: Tensor, ratio: float
) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """Tier name -> positions [n] and fp32 keys and values [n, D] that one head has there after a retier.

    ``cache`` is what it was before; scores [N] of the head by position.
    """
    state = cache.layer(layer)
    assert state.high is not None
    assert state.low is not None
    tiers = {"high": state.high, "low": state.low}
    count = high_page_count(state, b, ratio) * cache.page_size
    stored = {name: _stored(cache, tier, b, head, "k")[1] for name, tier in tiers.items()}
    everywhere = torch.cat(list(stored.values()))
    high = high_positions(scores, everywhere, count)
    low = everywhere[~torch.isin(everywhere, high)].sort().values
    found: dict[str, list[Tensor]] = {"high": [high], "low": [low]}
    for kind in "kv":
        channel_scale = getattr(state, f"{kind}_channel_scale")
        factor = torch.ones(cache.head_dim) if channel_scale is None else channel_scale[head]
        by_position: dict[int, tuple[Tensor, str]] = {}
        for name, tier in tiers.items():
            rows, positions = _stored(cache, tier, b, head, kind)
            by_position |= {int(p): (row, name) for p, row in zip(positions, rows, strict=True)}
        for name, tier in tiers.items():
            rows = torch.empty(len(found[name][0]), cache.head_dim)
            kept = torch.zeros(len(rows), dtype=torch.bool)
            for i, position in enumerate(found[name][0].tolist()):
                row, source = by_position[position]
                kept[i] = source == name
                if is_coded(tiers[source]) and not is_coded(tier):
                    row = (rotate_back(row) if cache.rotate else row) * factor
                elif is_coded(tier) and not is_coded(tiers[source]):
                    row = rotate(row / factor) if cache.rotate else row / factor
                rows[i] = row
            if is_coded(tier):
                rows = coded_again(cache, tier, kind, rows, kept)
                rows = (rotate_back(rows) if cache.rotate else rows) * factor
            else:
                rows = rows.to(cache.dtype).float()
            found[name].append(rows)
    return {name: (parts[0], parts[1], parts[2]) for name, parts in found.items()}
