"""The PARO operators on their CUDA kernels, executed on the CPU: functions with the same signatures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from attention_simt import give_heads, give_mask, run
from linear_logprobs_simt import SETUP as SETUP
from linear_logprobs_simt import Arrays
from simt_support import simt
from torch import Tensor

from tokcore.ops._paro_checks import CODE_DTYPES, operand_shapes

CODES = ("q_codes", "k_codes", "v_codes")
OPERANDS = ("q_codes", "q_scale", "k_codes", "k_scale", "v_codes", "v_scale")


def _give_order(arrays: Arrays, permutation: Sequence[int], grid: Sequence[int], text: Sequence[int]) -> None:
    arrays.give("permutation", torch.tensor(permutation, dtype=torch.int64))
    sizes = (*grid, *text)
    arrays.fields["grid"] = dict(zip(("frames", "height", "width", "before", "after"), sizes, strict=True))


def _give_shape(arrays: Arrays, B: int, H: int, Hkv: int, N: int, D: int, dtype: torch.dtype, qk: str, pv: str) -> None:
    arrays.fields |= {"batch": B, "num_heads": H, "num_kv_heads": Hkv, "length": N, "head_dim": D}
    arrays.fields |= {"dtype": str(dtype).removeprefix("torch."), "qk": qk, "pv": pv}


def prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    permutation: Sequence[int],
    grid: Sequence[int],
    text: Sequence[int],
    rope_cos: Tensor | None = None,
    rope_sin: Tensor | None = None,
    *,
    rope_pairs: str = "interleaved",
    qk: str = "int8",
    pv: str = "int8",
    smooth_k: bool = True,
    need_lse: bool = True,
) -> tuple[Tensor, ...]:
    """``tokcore::paro_prepare``."""
    arrays = Arrays()
    B, H, N, D = q.shape
    Hkv = k.size(1)
    _give_shape(arrays, B, H, Hkv, N, D, q.dtype, qk, pv)
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        give_heads(arrays, name, tensor)
    _give_order(arrays, permutation, grid, text)
    if rope_cos is not None and rope_sin is not None:
        rows = rope_cos.size(0)
        tables = Arrays()
        tables.give("cos", rope_cos.contiguous())
        tables.give("sin", rope_sin.contiguous())
        tables.fields |= {"width": rope_cos.size(1), "first": 0 if rows == N else text[0], "rows": rows}
        arrays.fields["rotation"] = {**tables.fields, "interleaved": rope_pairs == "interleaved"}
        arrays.kept += tables.kept
    shapes = operand_shapes(B, H, Hkv, N, D, qk, pv)
    shapes["k_mean"] = (B, Hkv, D) if smooth_k else (0,)
    shapes["mean_score"] = (B, H, N) if smooth_k and need_lse else (0,)
    names = (*OPERANDS, "k_mean", "mean_score")
    made = {}
    for name in names:
        dtype = CODE_DTYPES[pv if name == "v_codes" else qk] if name in CODES else torch.float32
        empty = shapes[name] == (0,) or not q.numel()
        made[name] = torch.empty(shapes[name], dtype=dtype) if empty else arrays.take(name, shapes[name], dtype)
    if q.numel():
        run(simt.ParoPrepare(arrays.fields), arrays)
    return tuple(made[name].clone() for name in names)


def attention(
    q_codes: Tensor,
    q_scale: Tensor,
    k_codes: Tensor,
    k_scale: Tensor,
    v_codes: Tensor,
    v_scale: Tensor,
    mean_score: Tensor,
    mask_bits: Tensor,
    permutation: Sequence[int],
    grid: Sequence[int],
    text: Sequence[int],
    block_m: int,
    block_n: int,
    *,
    head_dim: int,
    scale: float,
    out_dtype: torch.dtype,
    qk: str = "int8",
    pv: str = "int8",
    need_lse: bool = True,
) -> tuple[Tensor, Tensor]:
    """``tokcore::paro_attention``."""
    arrays = Arrays()
    B, H = q_codes.shape[:2]
    N = math.prod(grid) + sum(text)
    _give_shape(arrays, B, H, k_codes.size(1), N, head_dim, out_dtype, qk, pv)
    _give_order(arrays, permutation, grid, text)
    operands = (q_codes, q_scale, k_codes, k_scale, v_codes, v_scale, mean_score)
    for name, operand in zip((*OPERANDS, "mean_score"), operands, strict=True):
        arrays.give(name, operand if operand.dim() > 1 else None)
    give_mask(arrays, mask_bits.contiguous(), block_m, block_n)
    arrays.fields["scale"] = scale
    out = arrays.take("out", (B, H, N, head_dim), out_dtype)
    lse = arrays.take("lse", (B, H, N), torch.float32) if need_lse else torch.empty(0)
    if out.numel():
        run(simt.ParoAttention(arrays.fields), arrays)
    return out.clone(), lse.clone()


@contextmanager
def in_place_of_the_cpu() -> Iterator[None]:
    """The operators run these functions for CPU tensors, and so do the public functions."""
    library = torch.library.Library("tokcore", "IMPL")
    try:
        library.impl("paro_prepare", prepare, "CPU", allow_override=True)
        library.impl("paro_attention", attention, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()
