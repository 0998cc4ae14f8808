"""The meaning of ``kv_saliency``: the attention matrix of the probes in full, then its columns reduced."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gumbel_noise(seed: int, items: int, tokens: int) -> Tensor:
    """Gumbel noise fp64 [items, tokens] from Philox4x32-10: counter (token, item), first word, u = (w + 1/2)/2^32."""
    mask = (1 << 32) - 1
    noise = torch.empty(items, tokens, dtype=torch.float64)
    for item in range(items):
        for token in range(tokens):
            x = [token & mask, token >> 32, item & mask, item >> 32]
            key = [seed & mask, (seed >> 32) & mask]
            for _ in range(10):
                left, right = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
                x = [(right >> 32) ^ x[1] ^ key[0], right & mask, (left >> 32) ^ x[3] ^ key[1], left & mask]
                key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
            noise[item, token] = -math.log(-math.log((x[0] + 0.5) / 2**32))
    return noise


def kv_saliency(
    q_probe: Tensor,
    k: Tensor,
    probe_positions: Tensor,
    *,
    scale: float | None = None,
    reduce: str = "normalized_sum",
    lse: Tensor | None = None,
    decay: float = 1.0,
    temperature: float = 1.0,
    gumbel_seed: int | None = None,
    dtype: torch.dtype = torch.float64,
    product_dtype: torch.dtype | None = None,
) -> Tensor:
    """As :func:`tokcore.kv_saliency`, in ``dtype``; the product of q and k in ``product_dtype`` where that differs."""
    B, T, H, D = q_probe.shape
    N, Hkv = k.size(1), k.size(2)
    factor = D**-0.5 if scale is None else scale
    product = dtype if product_dtype is None else product_dtype
    queries = q_probe.to(product).reshape(B, T, Hkv, H // Hkv, D).permute(0, 2, 3, 1, 4)
    keys = k.to(product).permute(0, 2, 1, 3).unsqueeze(2)
    z = factor * (queries @ keys.transpose(-1, -2)).to(dtype)  # [B, Hkv, G, T, N]
    if gumbel_seed is not None:
        z = z + gumbel_noise(gumbel_seed, B * Hkv, N).to(z).reshape(B, Hkv, 1, 1, N)
    z = z / temperature
    seen = (torch.arange(N, device=k.device) <= probe_positions.unsqueeze(-1)).reshape(B, 1, 1, T, N)
    z = torch.where(seen, z, float("-inf"))
    rows = torch.logsumexp(z, -1, keepdim=True) if lse is None else lse.to(dtype).reshape(B, Hkv, H // Hkv, T, 1)
    p = torch.where(seen, torch.exp(z - rows), 0.0)
    if reduce == "max":
        return p.amax((2, 3)) if T else p.new_zeros(B, Hkv, N)
    if reduce == "decayed":
        positions = probe_positions.clamp(max=N - 1).to(dtype)
        latest = positions.amax(1, keepdim=True) if T else positions
        p = p * (decay ** (latest - positions).clamp(min=0)).reshape(B, 1, 1, T, 1)
    total = p.sum((2, 3))
    if reduce != "normalized_sum":
        return total
    count = seen.sum(3).squeeze(2) * (H // Hkv)
    return torch.where(count > 0, total / count.clamp(min=1), 0.0)
