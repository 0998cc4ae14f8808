"""The meaning of ``paro_attention``: codes by fp32 steps that are rounded once each, attention over them in fp64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tokcore.block_mask import BlockMask
from tokcore.permutation import permutation_indices
from tokcore.reference.block_sparse_attention import Attention, attend, scores

GROUP = 64
TOPS = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
LEAST = 2.0**-100


def rotate(x: Tensor, rope: tuple[Tensor, Tensor] | None, pairs: str, text: Sequence[int]) -> Tensor:
    """RoPE of x [..., N, D] in its dtype; tables without rows for the text leave it as it is."""
    if rope is None:
        return x
    N, D = x.size(-2), x.size(-1)
    first = 0 if rope[0].size(0) == N else text[0]
    rows = slice(first, first + rope[0].size(0))
    cos, sin = (table.to(x) for table in rope)
    if cos.size(1) != D:
        cos, sin = (t.repeat_interleave(2, 1) if pairs == "interleaved" else t.repeat(1, 2) for t in (cos, sin))
    inner = x[..., rows, :]
    left, right = (slice(0, D, 2), slice(1, D, 2)) if pairs == "interleaved" else (slice(0, D // 2), slice(D // 2, D))
    turned = inner.clone()
    turned[..., left] = inner[..., left] * cos[..., left] - inner[..., right] * sin[..., left]
    turned[..., right] = inner[..., right] * cos[..., right] + inner[..., left] * sin[..., right]
    result = x.clone()
    result[..., rows, :] = turned
    return result


def mean_of_keys(k: Tensor) -> Tensor:
    """The mean over the tokens of float32 k [B, Hkv, N, D] as [B, Hkv, D]: sums of 64 tokens in fp32, those in fp64."""
    total = torch.zeros(*k.shape[:2], k.size(3), dtype=torch.float64, device=k.device)
    for first in range(0, k.size(2), GROUP):
        chunk = torch.zeros_like(k[:, :, 0])
        for token in range(first, min(first + GROUP, k.size(2))):
            chunk = chunk + k[:, :, token]
        total = total + chunk.double()
    return (total / k.size(2)).float()


def to_e4m3(x: Tensor) -> Tensor:
    """The nearest e4m3 numbers of |x| <= 448, ties to even."""
    return x.to(torch.float8_e4m3fn)


def quantize(x: Tensor, fmt: str, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Codes of float32 x, as float32, and the scale of each group, which spans ``dims`` (kept as 1)."""
    most = x.abs().amax(dims, keepdim=True)
    finite = x.isfinite().all(dims[0], keepdim=True)
    for dim in dims[1:]:
        finite = finite.all(dim, keepdim=True)
    empty = most < LEAST
    top = torch.tensor(TOPS[fmt], device=x.device)
    scale = torch.where(empty, 0.0, most / top)
    inverse = torch.where(empty, 0.0, top / most)
    y = x * inverse
    codes = to_e4m3(y).float() if fmt == "fp8" else y.round()
    return torch.where(finite, codes, 0.0), torch.where(finite, scale, math.nan)


class Prepared(NamedTuple):
    """Operands by position, codes as float32."""

    q: Tensor  # [B, H, N, D]
    q_scale: Tensor  # [B, H, N, 1], 1 for bf16
    k: Tensor  # [B, Hkv, N, D]
    k_scale: Tensor  # [B, Hkv, N, 1], the same for 64 neighbours
    v: Tensor  # [B, Hkv, N, D]
    v_scale: Tensor  # [B, Hkv, 1, D]
    k_mean: Tensor  # [B, Hkv, D], 0 without smoothing
    mean_score: Tensor  # [B, H, N] float64, q·k_mean
    order: Tensor  # int64 [H, N]: the token at each position


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    permutation: Sequence[int],
    grid: Sequence[int],
    text: Sequence[int] = (0, 0),
    rope: tuple[Tensor, Tensor] | None = None,
    rope_pairs: str = "interleaved",
    qk: str = "int8",
    pv: str = "int8",
    smooth_k: bool = True,
) -> Prepared:
    """As :func:`tokcore.paro_prepare`; ``permutation`` has a code for each key head."""
    smooth_k = smooth_k and qk != "bf16"
    group = q.size(1) // k.size(1)
    order = torch.stack([permutation_indices(code, grid, text, device=q.device) for code in permutation])
    queries = order.repeat_interleave(group, 0)
    q, k = (rotate(x.float(), rope, rope_pairs, text) for x in (q, k))
    mean = mean_of_keys(k) if smooth_k else torch.zeros_like(k[:, :, 0])
    q, k, v = _reorder(q, queries), _reorder(k, order), _reorder(v.float(), order)
    mean_score = (q.double() * mean.double().repeat_interleave(group, 1).unsqueeze(2)).sum(-1)
    k = k - mean.unsqueeze(2) if smooth_k else k
    ones = torch.ones(1, device=q.device)
    if qk == "bf16":
        q_codes, q_scale, k_codes, k_scale = q.bfloat16().float(), ones, k.bfloat16().float(), ones
    else:
        q_codes, q_scale = quantize(q, qk, (-1,))
        padded = torch.nn.functional.pad(k, (0, 0, 0, -k.size(2) % GROUP))
        padded = padded.reshape(*k.shape[:2], -1, GROUP, k.size(3))
        k_codes, k_scale = quantize(padded, qk, (-2, -1))
        k_codes = k_codes.flatten(2, 3)[:, :, : k.size(2)]
        k_scale = k_scale.expand(-1, -1, -1, GROUP, 1).flatten(2, 3)[:, :, : k.size(2)]
    v_codes, v_scale = (v.bfloat16().float(), ones) if pv == "bf16" else quantize(v, pv, (-2,))
    return Prepared(q_codes, q_scale, k_codes, k_scale, v_codes, v_scale, mean, mean_score, queries)


def _reorder(x: Tensor, order: Tensor) -> Tensor:
    return x.gather(2, order.unsqueeze(-1).expand(x.size(0), -1, -1, x.size(3)))


def kept_blocks(block_mask: BlockMask, text: Sequence[int]) -> BlockMask:
    """What the mask keeps, and the blocks that hold text."""
    N = block_mask.shape[0]
    kept = block_mask.to_dense().clone()
    is_text = torch.ones(N, dtype=torch.bool)
    is_text[text[0] : N - text[1]] = False
    for axis, size in ((-2, block_mask.block[0]), (-1, block_mask.block[1])):
        padded = torch.nn.functional.pad(is_text, (0, -N % size)).view(-1, size).any(1).to(kept.device)
        kept = kept | (padded.unsqueeze(1) if axis == -2 else padded)
    return BlockMask.from_dense(kept, block_mask.block, shape=block_mask.shape)


def kept_elements(block_mask: BlockMask, text: Sequence[int]) -> Tensor:
    """bool [1 or B, 1 or H, N, N] by position: what the mask keeps, and the blocks that hold text."""
    return kept_blocks(block_mask, text).to_elements()


def attend_prepared(
    p: Prepared, visible: Tensor, scale: float, round_weights: bool = False, dtype: torch.dtype = torch.float64
) -> Attention:
    """Attention over the operands in ``dtype``, by token; ``round_weights``: to 8 bits below the maximum of a row."""
    q, k, v = (x.to(dtype) * s.to(dtype) for x, s in ((p.q, p.q_scale), (p.k, p.k_scale), (p.v, p.v_scale)))
    z = scores(q, k, visible, scale, dtype)
    z = torch.where(visible & ~z.isfinite(), math.nan, z)
    if round_weights:
        most = z.amax(-1, keepdim=True)
        weights = torch.where(z == -math.inf, 0.0, (255.0 * (z - most).exp()).round())
        total = weights.sum(-1, keepdim=True)
        out = weights @ v.repeat_interleave(z.size(1) // v.size(1), 1) / total
        result = Attention(torch.where(total == 0, 0.0, out), (total / 255.0).log().squeeze(-1) + most.squeeze(-1))
        empty = ~visible.any(-1).expand(z.shape[:-1])
        result = Attention(result.out.masked_fill(empty.unsqueeze(-1), 0.0), result.lse.masked_fill(empty, -math.inf))
    else:
        result = attend(z, v)
    lse = result.lse + scale * p.mean_score.to(dtype)
    return Attention(
        torch.empty_like(result.out).scatter_(2, p.order.unsqueeze(-1).expand_as(result.out), result.out),
        torch.empty_like(lse).scatter_(2, p.order.expand_as(lse), lse),
    )


def paro_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    permutation: Sequence[int],
    grid: Sequence[int],
    *,
    text: Sequence[int] = (0, 0),
    rope: tuple[Tensor, Tensor] | None = None,
    rope_pairs: str = "interleaved",
    qk: str = "int8",
    pv: str = "int8",
    smooth_k: bool = True,
    scale: float | None = None,
) -> Attention:
    """As :func:`tokcore.paro_attention` with both results, the weights not rounded; a code for each key head."""
    p = prepare(q, k, v, permutation, grid, text, rope, rope_pairs, qk, pv, smooth_k)
    factor = 1.0 / math.sqrt(q.size(-1)) if scale is None else scale
    return attend_prepared(p, kept_elements(block_mask, text), factor)
