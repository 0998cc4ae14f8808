"""q, k and v from the patches of a video: similar patches attend to one another, each head along axes of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokcore.permutation import AXES
from tokcore.testing.structured import WIDTHS, axis_amplitude, axis_angles, rotate

HEAD_DIM = 64
PLACE_PAIRS = 15  # pairs of channels that RoPE turns, five for each axis
CONTENT = 16  # coefficients of a patch that are compared
NUM_HEADS = 6


@dataclass(frozen=True)
class Features:
    """What the attention gets: q and k without and with RoPE, v, and RoPE's tables."""

    q: Tensor  # [1, H, N, 64] bf16
    k: Tensor
    v: Tensor
    rotated_q: Tensor
    rotated_k: Tensor
    rope: tuple[Tensor, Tensor]  # cos and sin [N, 32] fp32, of the pairs (i, i + 32)


def make_features(patches: Tensor, grid: Sequence[int], sigma: float, softness: float) -> Features:
    """From noisy patches [N, channels]: attention is non-local means (Buades et al. 2005) within reach of each head.

    Scores are -|a - b|²/h² of the patches' first coefficients, h² = softness·sigma²·sqrt(CONTENT), but for what is
    equal for all keys; RoPE adds what depends on the distance along each axis. Head h looks furthest along the fastest
    axis of order h. v holds the first 64 coefficients, so that the output is a patch again.
    """
    num_tokens = patches.size(0)
    width = softness * sigma**2 * math.sqrt(CONTENT)
    compared = patches[:, :CONTENT]
    still = torch.zeros(num_tokens, HEAD_DIM // 2 - PLACE_PAIRS, dtype=torch.float64)
    angles = [*axis_angles(grid, (0, 0), 2 * PLACE_PAIRS), still]
    root = math.sqrt(HEAD_DIM)  # the attention divides by it
    content = torch.zeros(2, num_tokens, HEAD_DIM)
    free = [*range(PLACE_PAIRS, HEAD_DIM // 2), *range(HEAD_DIM // 2 + PLACE_PAIRS, HEAD_DIM)]
    content[:, :, free[:CONTENT]] = compared * math.sqrt(2 * root / width)
    content[0, :, free[CONTENT]] = root
    content[1, :, free[CONTENT]] = -compared.square().sum(1) / width
    q, k = (part.expand(NUM_HEADS, -1, -1).clone() for part in content)
    for head in range(NUM_HEADS):
        reach = dict(zip(AXES[head % len(AXES)], WIDTHS, strict=True))
        amplitude = torch.cat([axis_amplitude(PLACE_PAIRS // 3, reach[axis], HEAD_DIM) for axis in range(3)])
        q[head, :, :PLACE_PAIRS] = amplitude
        k[head, :, :PLACE_PAIRS] = amplitude
    q, k = q.bfloat16().unsqueeze(0), k.bfloat16().unsqueeze(0)
    v = patches[:, :HEAD_DIM].bfloat16().expand(1, NUM_HEADS, -1, -1).contiguous()
    table = torch.cat(angles, -1)
    turned_q, turned_k = (rotate(x, angles).bfloat16() for x in (q, k))
    return Features(q, k, v, turned_q, turned_k, (table.cos().float(), table.sin().float()))
