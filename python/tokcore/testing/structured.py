"""q, k and v with the structure of video attention, and a known best order of their tokens.

``python -m tokcore.testing.structured --grid 21,30,52 --heads 40 --out FOLDER`` writes them as a sample to calibrate
from, of any size.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tokcore.ops._checks import wrapper_require
from tokcore.permutation import AXES, check_grid

WIDTHS = (1.5, 3.0, math.inf)
"""How far a planted head looks along the slowest, the middle and the fastest axis of its order, in tokens."""

CONTRAST = 6.0  # of the scores along an axis that a head looks along locally, in nats


def axis_angles(grid: Sequence[int], text: Sequence[int], head_dim: int, base: float = 100.0) -> list[Tensor]:
    """3-D RoPE: for each axis its angles [N, pairs], position times base^(-i/pairs) in float64; 0 for text.

    The D/2 pairs are shared out among the axes, the first ones taking what is left.
    """
    pairs = [head_dim // 2 // 3 + (1 if axis < head_dim // 2 % 3 else 0) for axis in range(3)]
    places = torch.meshgrid(*(torch.arange(size, dtype=torch.float64) for size in grid), indexing="ij")
    angles = []
    for place, count in zip(places, pairs, strict=True):
        frequency = base ** (-torch.arange(count, dtype=torch.float64) / count)
        inner = place.reshape(-1, 1) * frequency
        angles.append(torch.nn.functional.pad(inner, (0, 0, text[0], text[1])))
    return angles


def rotate(x: Tensor, angles: Sequence[Tensor]) -> Tensor:
    """Rotates the pairs (x[..., i], x[..., i + D/2]) of x [..., N, D] by the angles of all axes in turn, in fp32."""
    angle = torch.cat(list(angles), -1)
    cos, sin = angle.cos().float(), angle.sin().float()
    first, second = x.float().chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


def smooth_field(grid: Sequence[int], channels: int, generator: torch.Generator, waves: int = 4) -> Tensor:
    """Sums of a few long waves over a grid, [F·H·W, channels] fp32 of unit variance."""
    places = torch.meshgrid(*(torch.arange(size) / max(size, 2) for size in grid), indexing="ij")
    position = torch.stack([place.reshape(-1) for place in places], -1).float()
    direction = 2.0 * torch.randn(3, waves * channels, generator=generator)
    phase = 2 * math.pi * torch.rand(waves * channels, generator=generator)
    sums = (2 * math.pi * (position @ direction) + phase).cos().view(-1, channels, waves).sum(-1)
    return sums * math.sqrt(2.0 / waves)


def planted_attention(
    codes: Sequence[int],
    grid: Sequence[int],
    text: Sequence[int] = (0, 0),
    *,
    batch: int = 1,
    head_dim: int = 64,
    noise: float = 0.3,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v [B, H, N, D] in reading order; head h looks furthest along the fastest axis of order ``codes[h]``.

    Amplitudes that vary smoothly over the grid are turned by 3-D RoPE, so that scores fall with the distance along an
    axis: within :data:`WIDTHS` tokens along the slow axes, not at all along the fastest. In the order ``codes[h]``
    what a query looks at stands together.
    """
    generator = torch.Generator().manual_seed(seed)
    num_tokens = check_grid(wrapper_require("planted_attention"), grid, text)
    angles = axis_angles(grid, text, head_dim)
    shape = (batch, num_tokens, head_dim)
    q, k, v = (torch.empty(batch, len(codes), num_tokens, head_dim, dtype=dtype) for _ in range(3))
    for head, code in enumerate(codes):
        reach = dict(zip(AXES[code], WIDTHS, strict=True))
        amplitude = torch.cat([axis_amplitude(angles[axis].size(1), reach[axis], head_dim) for axis in range(3)])
        amplitude = torch.cat((amplitude, torch.zeros_like(amplitude))).float()
        field = torch.nn.functional.pad(1.0 + 0.05 * smooth_field(grid, 1, generator), (0, 0, text[0], text[1]))
        for tensor in (q, k):
            drawn = field * amplitude + noise * torch.randn(shape, generator=generator)
            tensor[:, head] = rotate(drawn, angles).to(dtype)
        values = torch.nn.functional.pad(smooth_field(grid, head_dim, generator), (0, 0, text[0], text[1]))
        v[:, head] = (values + noise * torch.randn(shape, generator=generator)).to(dtype)
    return q, k, v


def axis_amplitude(pairs: int, width: float, head_dim: int) -> Tensor:
    """[pairs] fp32 amplitudes of q and k along an axis: equal on the waves no shorter than ``width``, else 0.

    At a scale of 1/sqrt(head_dim) the scores of near and far then differ by :data:`CONTRAST`.
    """
    if not math.isfinite(width):
        return torch.zeros(pairs)
    frequency = 100.0 ** (-torch.arange(pairs, dtype=torch.float64) / pairs)
    used = (frequency <= 1.0 / width).double()
    used[-1] = 1.0
    return (used * CONTRAST * math.sqrt(head_dim) / used.sum()).sqrt().float()


def main() -> None:
    """Write one sample of planted heads, codes 0 to 5 in turn, without v."""
    from tokcore.paro import AttentionSample, save_sample

    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--grid", default="21,30,52")
    parser.add_argument("--heads", type=int, default=40)
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    grid = tuple(int(size) for size in words.grid.split(","))
    codes = [head % len(AXES) for head in range(words.heads)]
    q, k, _ = planted_attention(codes, grid, head_dim=words.head_dim, dtype=torch.bfloat16)
    words.out.mkdir(parents=True, exist_ok=True)
    print(save_sample(words.out / "planted.safetensors", AttentionSample(0, "planted", q, k)))


if __name__ == "__main__":
    main()
