"""Helpers of the KV cache's tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.reference.kv_cache import Tokens, read_sequence


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def filled(
    L: int, B: int = 2, Hkv: int = 2, D: int = 64, dtype: torch.dtype = torch.bfloat16, seed: int = 0, **options: Any
) -> tuple[tokcore.QuantizedKVCache, Tensor, Tensor]:
    """A cache of one layer with L tokens a sequence, and their keys and values [B, L, Hkv, D]."""
    options = {"capacity": L + 64, **options}
    cache = tokcore.QuantizedKVCache(1, B, Hkv, D, options.pop("capacity"), dtype=dtype, **options)
    k, v = random(B, L, Hkv, D, seed=seed, dtype=dtype), random(B, L, Hkv, D, seed=seed + 1, dtype=dtype)
    cache.append(0, k, v)
    return cache, k, v


def state_of(cache: tokcore.QuantizedKVCache, layer: int = 0) -> list[Tensor]:
    """Copies of everything that a layer holds."""
    lengths, starts, recent, high, low, *_ = cache.layer(layer).operands()
    return [part.clone() for part in (lengths, starts, *recent, *high, *low)]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(left, right, strict=True))


def by_position(cache: tokcore.QuantizedKVCache, b: int, layer: int = 0) -> Tokens:
    """What a sequence holds, in order of positions."""
    tokens = read_sequence(cache, layer, b)
    order = tokens.positions.argsort(dim=1)
    index = order.unsqueeze(-1).expand(-1, -1, cache.head_dim)
    return Tokens(tokens.k.gather(1, index), tokens.v.gather(1, index), tokens.positions.gather(1, order))


def shuffle_pages(cache: tokcore.QuantizedKVCache, seed: int = 0) -> None:
    """Puts the pages of an empty cache's tables in random order."""
    generator = torch.Generator().manual_seed(seed)
    for layer in range(cache.layers):
        for tier in (cache.layer(layer).high, cache.layer(layer).low):
            if tier is not None:
                order = torch.randperm(tier.page_table.numel(), generator=generator)
                tier.page_table.copy_(order.to(torch.int32).reshape(tier.page_table.shape))
