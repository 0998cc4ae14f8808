"""What a cache holds, in plain PyTorch: the layouts of its pages, and every token read back."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tokcore.reference.kv_quantize import dequantize, rotate_back

if TYPE_CHECKING:
    from tokcore.quantized_kv_cache import QuantizedKVCache, Tier


def _planes(packed: Tensor, bits: int) -> Tensor:
    """[…] bytes -> [8/bits, …] codes."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device).reshape(-1, *[1] * packed.dim())
    codes: Tensor = (packed.unsqueeze(0) >> shifts) & (2**bits - 1)
    return codes


def unpack_key_pages(pages: Tensor, bits: int) -> Tensor:
    """Bytes [..., page_size, D·bits/8] as codes [..., page_size, D].

    Bytes lie as [page_size/16][D/n/4][16 tokens][4 channels], n = 8/bits codes each: channels d, d + D/n, ….
    """
    *leading, page_size, row = pages.shape
    blocks = pages.reshape(*leading, page_size // 16, row // 4, 16, 4)
    rows = blocks.transpose(-3, -2).reshape(*leading, page_size, row)
    return torch.cat(list(_planes(rows, bits)), dim=-1)


def pack_key_pages(codes: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`unpack_key_pages`."""
    *leading, page_size, D = codes.shape
    n = 8 // bits
    planes = codes.reshape(*leading, page_size, n, D // n)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8).unsqueeze(-1)
    rows = (planes << shifts).sum(-2, dtype=torch.uint8)
    blocks = rows.reshape(*leading, page_size // 16, 16, D // n // 4, 4).transpose(-3, -2)
    return blocks.reshape(*leading, page_size, D // n)


def unpack_value_pages(pages: Tensor, bits: int) -> Tensor:
    """Bytes [..., page_size, D·bits/8] as codes [..., page_size, D].

    Bytes lie as [D/16][page_size/n/4][16 channels][4 tokens], n = 8/bits codes each: tokens t, t + page_size/n, ….
    """
    *leading, page_size, row = pages.shape
    n, D = 8 // bits, row * 8 // bits
    blocks = pages.reshape(*leading, D // 16, page_size // n // 4, 16, 4)
    rows = blocks.permute(*range(len(leading)), -3, -1, -4, -2).reshape(*leading, page_size // n, D)
    return torch.cat(list(_planes(rows, bits)), dim=-2)


def pack_value_pages(codes: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`unpack_value_pages`."""
    *leading, page_size, D = codes.shape
    n = 8 // bits
    planes = codes.reshape(*leading, n, page_size // n, D)
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8).reshape(-1, 1, 1)
    rows = (planes << shifts).sum(-3, dtype=torch.uint8)
    blocks = rows.reshape(*leading, page_size // n // 4, 4, D // 16, 16)
    blocks = blocks.permute(*range(len(leading)), -2, -4, -1, -3)
    return blocks.reshape(*leading, page_size, D * bits // 8)


class Tokens(NamedTuple):
    """What a sequence holds, per head in no particular order."""

    k: Tensor  # [Hkv, N, D]
    v: Tensor
    positions: Tensor  # int64 [Hkv, N]


def page_numbers(
    pages: Tensor, scale: Tensor, zero: Tensor, head_dim: int, axis: str, keys: bool, dtype: torch.dtype
) -> Tensor:
    """Numbers [n, Hkv, page_size, D] in ``dtype``, as they were quantized."""
    if pages.dtype != torch.uint8:
        return pages.to(dtype)
    bits = pages.size(-1) * 8 // head_dim
    codes = unpack_key_pages(pages, bits) if keys else unpack_value_pages(pages, bits)
    page_size = codes.size(-2)
    group = head_dim // scale.size(2) if axis == "token" else page_size // scale.size(2)
    by_row = [part.transpose(-1, -2) if axis == "token" else part for part in (scale, zero) if part.dim() > 1]
    return dequantize(codes, by_row[0], by_row[1] if len(by_row) > 1 else None, bits, axis, group, dtype=dtype)


def _tier_tokens(cache: QuantizedKVCache, layer: int, tier: Tier, b: int, dtype: torch.dtype) -> Tokens:
    scales = cache.layer(layer)
    used = tier.page_table[b, : int(tier.page_counts[b])].long()
    H, page_size = cache.kv_heads, cache.page_size
    found = []
    for name, axis, channel_scale in (
        ("k", cache.k_axis, scales.k_channel_scale),
        ("v", cache.v_axis, scales.v_channel_scale),
    ):
        pages, scale, zero = (getattr(tier, f"{name}_{part}") for part in ("pages", "scale", "zero"))
        chosen = [part[used] if part.dim() > 1 else part for part in (scale, zero)]
        x = page_numbers(pages[used], chosen[0], chosen[1], cache.head_dim, axis, name == "k", dtype)
        if pages.dtype == torch.uint8:
            x = rotate_back(x) if cache.rotate else x
            x = x if channel_scale is None else x * channel_scale.to(dtype).unsqueeze(-2)
        found.append(x.transpose(0, 1).reshape(H, -1, cache.head_dim))
    if tier.positions.numel() > 0:
        positions = tier.positions.to(torch.int64)[used].transpose(0, 1).reshape(H, -1)
    else:
        positions = (cache.sinks + torch.arange(len(used) * page_size, device=used.device)).expand(H, -1)
    return Tokens(found[0], found[1], positions)


def read_tier(cache: QuantizedKVCache, layer: int, name: str, b: int, dtype: torch.dtype = torch.float64) -> Tokens:
    """What the tier ``"high"`` or ``"low"`` holds of a sequence."""
    tier = getattr(cache.layer(layer), name)
    assert tier is not None
    return _tier_tokens(cache, layer, tier, b, dtype)


def read_sequence(cache: QuantizedKVCache, layer: int, b: int, dtype: torch.dtype = torch.float64) -> Tokens:
    """Every token that sequence ``b`` holds in a layer."""
    state = cache.layer(layer)
    length, start = int(state.lengths[b]), int(state.window_starts[b])
    sinks = torch.arange(min(length, cache.sinks), device=cache.device)
    recent = torch.arange(start, max(start, length), device=cache.device)
    slots = recent % state.window_k.size(2)
    positions = torch.cat([sinks, recent]).expand(cache.kv_heads, -1)
    k = torch.cat([state.sink_k[b][:, sinks], state.window_k[b][:, slots]], dim=1).to(dtype)
    v = torch.cat([state.sink_v[b][:, sinks], state.window_v[b][:, slots]], dim=1).to(dtype)
    parts = [Tokens(k, v, positions)]
    parts += [_tier_tokens(cache, layer, tier, b, dtype) for tier in (state.high, state.low) if tier is not None]
    return Tokens(*(torch.cat(columns, dim=1) for columns in zip(*parts, strict=True)))
