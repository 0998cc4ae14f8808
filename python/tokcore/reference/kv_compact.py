"""The meaning of ``kv_compact``: which tokens a sequence has afterwards, and what they are worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokcore.reference.kv_cache import page_numbers, read_sequence
from tokcore.reference.kv_quantize import rotate, rotate_back
from tokcore.reference.kv_retier import coded_again, is_coded

if TYPE_CHECKING:
    from tokcore.quantized_kv_cache import Layer, QuantizedKVCache, Tier


def _page_of(cache: QuantizedKVCache, state: Layer, b: int, head: int, place: int) -> tuple[Tier, int]:
    """The tier and number of the page that holds the token in this place, as one head has it."""
    for tier in (state.high, state.low):
        if tier is None:
            continue
        used = tier.page_table[b, : int(tier.page_counts[b])].long()
        if tier.positions.numel() == 0:
            return tier, int(used[(place - cache.sinks) // cache.page_size])
        found = (tier.positions.to(torch.int64)[used, head] == place).any(-1).nonzero()
        if len(found):
            return tier, int(used[int(found[0])])
    raise AssertionError(f"no page holds place {place}")


def compacted(
    cache: QuantizedKVCache, layer: int, b: int, count: int, path: Sequence[int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """fp32 keys and values [Hkv, n, D] of sequence b, their positions [n], and the window's new first position.

    ``cache`` is what it was before, with ``count`` nodes at its end; ``path`` are the accepted ones.
    """
    state = cache.layer(layer)
    length, start = int(state.lengths[b]), int(state.window_starts[b])
    prefix = length - count
    sources = [*range(prefix), *(prefix + node for node in path)]
    whole = (max(len(sources) - cache.sinks, 0)) // cache.page_size * cache.page_size
    new_start = min(start, cache.sinks + whole) if start > max(prefix, cache.sinks) else start
    before = read_sequence(cache, layer, b, torch.float32)
    held = set(before.positions[0].tolist())
    present = [place for place, source in enumerate(sources) if source in held]
    found = {}
    for kind in "kv":
        heads = []
        for head in range(cache.kv_heads):
            natural = torch.zeros(length, cache.head_dim)  # by place; what was dropped long ago is left out below
            natural[before.positions[head]] = getattr(before, kind)[head]
            rows = natural[torch.tensor(sources, dtype=torch.int64)]
            for first in range(cache.sinks, start, cache.page_size):
                places = list(range(first, min(first + cache.page_size, len(sources))))
                if not places or places[-1] < prefix or all(sources[place] == place for place in places):
                    continue
                if first < new_start:
                    rows[places] = _page(cache, state, b, head, kind, [sources[p] for p in places], first, natural)
            recent = [p for p in range(len(sources)) if p < cache.sinks or p >= new_start]
            rows[recent] = rows[recent].to(cache.dtype).float()
            heads.append(rows[present])
        found[kind] = torch.stack(heads)
    return found["k"], found["v"], torch.tensor(present, dtype=torch.int64), torch.tensor(new_start)


def _page(
    cache: QuantizedKVCache,
    state: Layer,
    b: int,
    head: int,
    kind: str,
    sources: Sequence[int],
    first: int,
    natural: Tensor,
) -> Tensor:
    """What a page that starts at place ``first`` makes of the tokens from ``sources``."""
    target, _ = _page_of(cache, state, b, head, first)
    if not is_coded(target):
        return natural[list(sources)].to(cache.dtype).float()
    channel_scale = getattr(state, f"{kind}_channel_scale")
    factor = torch.ones(cache.head_dim) if channel_scale is None else channel_scale[head]
    axis = cache.k_axis if kind == "k" else cache.v_axis
    rows, kept = [], []
    for source in sources:
        in_pages = cache.sinks <= source < int(state.window_starts[b])
        tier, page = _page_of(cache, state, b, head, source) if in_pages else (None, -1)
        kept.append(tier is target)
        if tier is not None and is_coded(tier):
            parts = [getattr(tier, f"{kind}_{part}") for part in ("scale", "zero")]
            scale, zero = (part[page : page + 1] if part.dim() > 1 else part for part in parts)
            pages = getattr(tier, f"{kind}_pages")[page : page + 1]
            numbers = page_numbers(pages, scale, zero, cache.head_dim, axis, kind == "k", torch.float32)[0, head]
            rows.append(numbers[(source - cache.sinks) % cache.page_size])
        else:
            row = natural[source] / factor
            rows.append(rotate(row) if cache.rotate else row)
    coded = coded_again(cache, target, kind, torch.stack(rows), torch.tensor(kept))
    return (rotate_back(coded) if cache.rotate else coded) * factor
