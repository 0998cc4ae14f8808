"""The meaning of ``kv_quantize``: fp32 steps, each rounded once, in plain PyTorch; and its packed layouts."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bfloat16_not_above(x: Tensor) -> Tensor:
    """The nearest bfloat16 that is not above x, of float32 x; a NaN stays."""
    near = x.bfloat16()
    below = (near.view(torch.int16) + torch.where(near.float() > 0, -1, 1).to(torch.int16)).view(torch.bfloat16)
    smallest = torch.tensor(-(2.0**-133), dtype=torch.bfloat16)  # below zero
    below = torch.where(near == 0, smallest.to(x.device), below)
    return torch.where(near.float() > x, below, near)


def bfloat16_not_below(x: Tensor) -> Tensor:
    """The nearest bfloat16 that is not below x."""
    return -bfloat16_not_above(-x)


def rotation_signs(size: int) -> Tensor:
    """The signs that the rotation applies before the Hadamard matrix, [size] of 1 and -1."""
    mask = (1 << 64) - 1
    signs = []
    for channel in range(size):
        x = ((channel + 1) * 0x9E3779B97F4A7C15) & mask
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
        signs.append(-1.0 if (x ^ (x >> 31)) & 1 else 1.0)
    return torch.tensor(signs)


def hadamard(x: Tensor) -> Tensor:
    """H x / sqrt(D) over the last dimension, in the butterflies' order of additions."""
    D, half = x.size(-1), 1
    while half < D:
        pairs = x.reshape(*x.shape[:-1], D // (2 * half), 2, half)
        low, high = pairs[..., 0, :], pairs[..., 1, :]
        x = torch.stack([low + high, low - high], dim=-2).reshape(x.shape)
        half *= 2
    return x * torch.tensor(1.0 / math.sqrt(D), dtype=torch.float32).to(x)


def rotate(x: Tensor) -> Tensor:
    """y = H (s ∘ x) / sqrt(D)."""
    return hadamard(x * rotation_signs(x.size(-1)).to(x))


def rotate_back(y: Tensor) -> Tensor:
    """x = s ∘ (H y / sqrt(D))."""
    return hadamard(y) * rotation_signs(y.size(-1)).to(y)


def _grouped(x: Tensor, axis: str, group: int) -> Tensor:
    """[..., N, D] as [..., groups…, group] with the group last."""
    *leading, N, D = x.shape
    if axis == "token":
        return x.reshape(*leading, N, D // group, group)
    return x.reshape(*leading, N // group, group, D).transpose(-1, -2)


def _ungrouped(x: Tensor, axis: str, shape: torch.Size) -> Tensor:
    return x.reshape(shape) if axis == "token" else x.transpose(-1, -2).reshape(shape)


def quantize(
    x: Tensor,
    bits: int,
    axis: str,
    group: int,
    symmetric: bool = False,
    channel_scale: Tensor | None = None,
    rotates: bool = False,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes uint8 [..., N, D], scale and zero (None when symmetric); channel_scale broadcasts over [..., D]."""
    y = x.float()
    if channel_scale is not None:
        y = y / channel_scale
    if rotates:
        y = rotate(y)
    grouped = _grouped(y, axis, group)
    finite = grouped.isfinite().all(-1)
    low, high = grouped.amin(-1), grouped.amax(-1)
    if symmetric:
        zero = torch.zeros_like(low).bfloat16()
        spread = torch.maximum(-low, high) / (2 ** (bits - 1) - 1)
    else:
        zero = bfloat16_not_above(low)
        spread = (high - zero.float()) / (2**bits - 1)
    scale = bfloat16_not_below(spread)
    good = finite & scale.isfinite() & zero.isfinite()
    nan = torch.tensor(float("nan"), dtype=torch.bfloat16, device=x.device)
    scale = torch.where(good, scale + 0.0, nan)
    zero = torch.where(good, zero + 0.0, nan)
    step, origin = scale.float().unsqueeze(-1), (0.0 if symmetric else zero.float().unsqueeze(-1))
    quotient = torch.where(step > 0, (grouped - origin) / torch.where(step > 0, step, 1.0), 0.0)
    codes = quotient.round() + 2 ** (bits - 1) if symmetric else quotient.round()
    codes = torch.nan_to_num(codes.clamp(1 if symmetric else 0, 2**bits - 1), nan=0.0)
    codes = torch.where(good.unsqueeze(-1), codes, 0.0).to(torch.uint8)
    return _ungrouped(codes, axis, x.shape), scale, None if symmetric else zero


def dequantize(
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    bits: int,
    axis: str,
    group: int,
    channel_scale: Tensor | None = None,
    rotates: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """x̂ [..., N, D] in ``dtype``."""
    grouped = _grouped(codes.to(dtype), axis, group)
    step = scale.to(dtype).unsqueeze(-1)
    y = (grouped - 2 ** (bits - 1)) * step if zero is None else grouped * step + zero.to(dtype).unsqueeze(-1)
    y = _ungrouped(y, axis, codes.shape)
    if rotates:
        y = rotate_back(y)
    return y if channel_scale is None else y * channel_scale.to(dtype)


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """[..., D] -> [..., D·bits/8]: byte j holds channels j, j + D/n, … from its low bits up, n = 8/bits."""
    n = 8 // bits
    planes = codes.reshape(*codes.shape[:-1], n, codes.size(-1) // n)
    shifts = (torch.arange(n, dtype=torch.uint8, device=codes.device) * bits).unsqueeze(-1)
    return (planes << shifts).sum(-2, dtype=torch.uint8)


def unpack_rows(packed: Tensor, bits: int) -> Tensor:
    """The inverse of :func:`pack_rows`."""
    n = 8 // bits
    shifts = (torch.arange(n, dtype=torch.uint8, device=packed.device) * bits).unsqueeze(-1)
    codes: Tensor = (packed.unsqueeze(-2) >> shifts) & (2**bits - 1)
    return codes.flatten(-2)
