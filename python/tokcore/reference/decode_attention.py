"""The meaning of ``decode_attention``: attention over everything that the cache holds, dequantized."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokcore.reference.kv_cache import Tokens, read_sequence

if TYPE_CHECKING:
    from tokcore.quantized_kv_cache import QuantizedKVCache
    from tokcore.token_tree import TokenTree


def visible(
    tokens: Tokens,
    num_queries: int,
    length: int,
    window: int | None,
    sinks: int,
    tree: TokenTree | None = None,
    request: int = 0,
) -> Tensor:
    """Which of N tokens each query sees, bool [Hkv, M, N]."""
    queries = torch.arange(length - num_queries, length).reshape(1, -1, 1)
    positions = tokens.positions.unsqueeze(1)
    seen = positions <= queries
    if tree is not None:  # a token's place in the cache is not its position
        prefix = length - int(tree.counts[request])
        depths = tree.depths()[request]
        nodes = (positions - prefix).clamp(min=0)  # [Hkv, 1, N]
        ancestors = tree.mask()[request][:, nodes.flatten()].reshape(num_queries, *nodes[:, 0].shape).transpose(0, 1)
        seen = torch.where(positions < prefix, tree.valid()[request].reshape(1, -1, 1), ancestors)
        queries = prefix + depths.reshape(1, -1, 1)
        positions = torch.where(positions < prefix, positions, prefix + depths[nodes])
    return seen if window is None else seen & ((positions > queries - window) | (positions < sinks))


def decode_attention(
    q: Tensor,
    cache: QuantizedKVCache,
    layer: int,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    tree: TokenTree | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor]:
    """As :func:`tokcore.decode_attention`: out [B, M, H, D] and lse [B, H, M] in ``dtype``."""
    B, M, H, D = q.shape
    factor = D**-0.5 if scale is None else scale
    group = H // cache.kv_heads
    outs, lses = [], []
    for b in range(B):
        tokens = read_sequence(cache, layer, b, dtype)
        queries = q[b].to(dtype).reshape(M, cache.kv_heads, group, D).permute(1, 2, 0, 3)  # [Hkv, G, M, D]
        z = factor * queries @ tokens.k.unsqueeze(1).transpose(-1, -2)
        if softcap is not None:
            z = softcap * torch.tanh(z / softcap)
        length = int(cache.layer(layer).lengths[b])
        seen = visible(tokens, M, length, window, cache.sinks, tree, b).unsqueeze(1)
        z = torch.where(seen, z, float("-inf"))
        lse = torch.logsumexp(z, dim=-1)
        p = torch.where(lse.unsqueeze(-1) == float("-inf"), 0.0, torch.exp(z - lse.unsqueeze(-1)))
        out = p @ tokens.v.unsqueeze(1)
        outs.append(out.permute(2, 0, 1, 3).reshape(M, H, D))
        lses.append(lse.reshape(H, M))
    return torch.stack(outs), torch.stack(lses)
