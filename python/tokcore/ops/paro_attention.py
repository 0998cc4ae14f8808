"""``paro_attention``: attention over reordered tokens of a video or image, block-sparse and quantized."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.block_mask import BlockMask
from tokcore.ops import _attention_checks as attention
from tokcore.ops import _checks as checks
from tokcore.ops import _paro_checks as paro
from tokcore.ops._checks import Require
from tokcore.ops.block_sparse_attention import check_mask_of
from tokcore.permutation import check_grid

Rope = tuple[Tensor, Tensor]


@torch.library.register_fake("tokcore::paro_prepare")  # type: ignore[untyped-decorator]
def _prepare_fake(
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
    require = checks.fake_require("paro_prepare")
    rope = {"rope_cos": rope_cos, "rope_sin": rope_sin}
    paro.check_prepare(require, q, k, v, permutation, grid, text, rope, rope_pairs, qk, pv)
    attention.check_strides(require, {"q": q, "k": k, "v": v})
    B, H, N, D = q.shape
    Hkv = k.size(1)
    shapes = paro.operand_shapes(B, H, Hkv, N, D, qk, pv)
    made = {
        name: q.new_empty(shape, dtype=torch.float32 if name.endswith("scale") else None)
        for name, shape in shapes.items()
        if name.endswith("scale")
    }
    for name in ("q_codes", "k_codes", "v_codes"):
        made[name] = q.new_empty(shapes[name], dtype=paro.CODE_DTYPES[pv if name == "v_codes" else qk])
    k_mean = q.new_empty((B, Hkv, D) if smooth_k else (0,), dtype=torch.float32)
    mean_score = q.new_empty((B, H, N) if smooth_k and need_lse else (0,), dtype=torch.float32)
    names = ("q_codes", "q_scale", "k_codes", "k_scale", "v_codes", "v_scale")
    return (*(made[name] for name in names), k_mean, mean_score)


@torch.library.register_fake("tokcore::paro_attention")  # type: ignore[untyped-decorator]
def _attention_fake(
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
    require = checks.fake_require("paro_attention")
    operands = {
        "q_codes": q_codes,
        "k_codes": k_codes,
        "v_codes": v_codes,
        "q_scale": q_scale,
        "k_scale": k_scale,
        "v_scale": v_scale,
        "mean_score": mean_score,
    }
    order = (permutation, grid, text)
    B, H, N = paro.check_operands(
        require, operands, mask_bits, *order, (block_m, block_n), head_dim, scale, out_dtype, qk, pv
    )
    out = q_codes.new_empty((B, H, N, head_dim), dtype=out_dtype)
    return out, q_codes.new_empty((B, H, N) if need_lse else (0,), dtype=torch.float32)


@dataclass(frozen=True)
class ParoOperands:
    """Rotated, reordered and quantized q, k and v, as :func:`paro_prepare` makes them; see docs/ops/paro_attention.md
    for the layouts. Letters: P is N and Dq is D, rounded up to 64; Dv is D, rounded up to 32."""

    q_codes: Tensor  # [B, H, P, Dq] int8 or bfloat16; int4: [B, H, P, Dq/2] uint8
    q_scale: Tensor  # [B, H, P] float32; empty for bf16
    k_codes: Tensor  # [B, Hkv, P, Dq], as q_codes
    k_scale: Tensor  # [B, Hkv, P/64]
    v_codes: Tensor  # [B, Hkv, P/64, Dv, 64] int8 or bytes of e4m3; int4: [.., 32] uint8; bf16: [B, Hkv, P, Dq]
    v_scale: Tensor  # [B, Hkv, D]
    k_mean: Tensor  # [B, Hkv, D]; empty without smoothing
    mean_score: Tensor  # [B, H, N] q·k_mean; empty without smoothing or lse
    permutation: tuple[int, ...]  # a code for each of Hkv heads
    grid: tuple[int, int, int]
    text: tuple[int, int]
    head_dim: int
    dtype: torch.dtype  # of q, k and v, and of the result
    qk: str
    pv: str
    has_lse: bool  # whether lse can be had

    @overload
    def attend(
        self, block_mask: BlockMask, *, scale: float | None = None, return_lse: Literal[False] = False
    ) -> Tensor: ...
    @overload
    def attend(
        self, block_mask: BlockMask, *, scale: float | None = None, return_lse: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...
    @overload
    def attend(
        self, block_mask: BlockMask, *, scale: float | None = None, return_lse: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]: ...
    def attend(
        self, block_mask: BlockMask, *, scale: float | None = None, return_lse: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """:func:`paro_attention` without its prologue; arguments, results and errors are the same."""
        return self._attend(checks.wrapper_require("paro_attention"), block_mask, scale, return_lse)

    def _attend(
        self, require: Require, block_mask: BlockMask, scale: float | None, return_lse: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        attention.check_flag(require, "return_lse", return_lse)
        require(
            self.has_lse or not return_lse, "return_lse", lambda: "False (need_lse of paro_prepare)", lambda: "True"
        )
        checks.check_positive(require, "scale", scale, optional=True)
        before, after = self.text
        N = math.prod(self.grid) + before + after
        B, H = self.q_codes.size(0), self.q_codes.size(1)
        check_mask_of(require, block_mask, B, H, N, N, self.q_codes.device)
        out, lse = torch.ops.tokcore.paro_attention(
            self.q_codes,
            self.q_scale,
            self.k_codes,
            self.k_scale,
            self.v_codes,
            self.v_scale,
            self.mean_score,
            block_mask.bits,
            self.permutation,
            self.grid,
            self.text,
            *block_mask.block,
            head_dim=self.head_dim,
            scale=1.0 / math.sqrt(self.head_dim) if scale is None else float(scale),
            out_dtype=self.dtype,
            qk=self.qk,
            pv=self.pv,
            need_lse=return_lse,
        )
        return (out, lse) if return_lse else out


def paro_prepare(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    permutation: int | Sequence[int] | Tensor,
    grid: Sequence[int],
    *,
    text: Sequence[int] = (0, 0),
    rope: Rope | None = None,
    rope_pairs: str = "interleaved",
    qk: str = "int8",
    pv: str = "int8",
    smooth_k: bool = True,
    need_lse: bool = True,
) -> ParoOperands:
    """The prologue of :func:`paro_attention` alone, for q, k and v that are attended more than once.

    Rotates q and k, puts the tokens of every head into its order, subtracts the keys' mean and quantizes. Codes and
    scales are the same bits at every instruction-set level and on every backend.

    Args:
        q, k, v, permutation, grid, text, rope, rope_pairs, qk, pv, smooth_k: as for :func:`paro_attention`.
        need_lse: also keep what lse needs under smoothing.

    Returns:
        :class:`ParoOperands`; its ``attend(block_mask)`` is the rest of :func:`paro_attention`.

    Raises:
        As :func:`paro_attention`.

    Reads k and v twice (k once without smoothing, v once with pv="bf16") and writes a byte for a number, or half a
    byte, or two.
    """
    require = checks.wrapper_require("paro_prepare")
    attention.check_flag(require, "need_lse", need_lse)
    return _prepare(
        require, q, k, v, permutation, grid, text, rope, rope_pairs, qk, pv, smooth_k=smooth_k, need_lse=need_lse
    )


def _prepare(
    require: Require,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    permutation: int | Sequence[int] | Tensor,
    grid: Sequence[int],
    text: Sequence[int],
    rope: Rope | None,
    rope_pairs: str,
    qk: str,
    pv: str,
    *,
    smooth_k: bool,
    need_lse: bool,
) -> ParoOperands:
    for name, value in {"q": q, "k": k, "v": v}.items():
        checks._tensor(require, name, value)
    attention.check_flag(require, "smooth_k", smooth_k)
    smooth_k = smooth_k and qk != "bf16"
    tables = _rope_tables(require, rope)
    attention.check_tensors(require, q, k, v)
    attention.check_supported_device(require, q)
    check_grid(require, grid, text)
    attention.check_devices(require, q, {"k": k, "v": v})
    attention.check_shapes(require, q, k)
    codes = _codes_of_key_heads(require, permutation, q.size(1), k.size(1))
    paro.check_prepare(
        require, q, k, v, codes, grid, text, {"rope": tables[0], "rope[1]": tables[1]}, rope_pairs, qk, pv
    )
    made = torch.ops.tokcore.paro_prepare(
        attention.dense_heads(q),
        attention.dense_heads(k),
        attention.dense_heads(v),
        codes,
        tuple(grid),
        tuple(text),
        *tables,
        rope_pairs=rope_pairs,
        qk=qk,
        pv=pv,
        smooth_k=smooth_k,
        need_lse=need_lse,
    )
    names = ("q_codes", "q_scale", "k_codes", "k_scale", "v_codes", "v_scale", "k_mean", "mean_score")
    return ParoOperands(
        **dict(zip(names, made, strict=True)),
        permutation=codes,
        grid=(grid[0], grid[1], grid[2]),
        text=(text[0], text[1]),
        head_dim=q.size(3),
        dtype=q.dtype,
        qk=qk,
        pv=pv,
        has_lse=need_lse or not smooth_k,
    )


def _rope_tables(require: Require, rope: Rope | None) -> tuple[Tensor | None, Tensor | None]:
    if rope is None:
        return None, None
    given: object = rope
    pair = isinstance(given, tuple | list) and len(given) == 2 and all(isinstance(table, Tensor) for table in given)
    require(pair, "rope", lambda: "(cos, sin), two Tensors, or None", lambda: type(rope).__name__, TypeError)
    return rope[0], rope[1]


def _codes_of_key_heads(
    require: Require, permutation: int | Sequence[int] | Tensor, H: int, Hkv: int
) -> tuple[int, ...]:
    """One code for each key head of codes for all, for every head or for every key head."""
    if isinstance(permutation, int) and not isinstance(permutation, bool):
        return (permutation,) * Hkv
    given = permutation.tolist() if isinstance(permutation, Tensor) else permutation
    listed = isinstance(given, tuple | list) and all(isinstance(c, int) and not isinstance(c, bool) for c in given)
    expected = f"a code, or {H} (H of q) or {Hkv} (Hkv of k) codes"
    require(listed, "permutation", lambda: expected, lambda: type(permutation).__name__, TypeError)
    codes = tuple(given)  # type: ignore[arg-type]
    require(len(codes) in (H, Hkv), "permutation", lambda: expected, lambda: f"{len(codes)} codes")
    if len(codes) == Hkv:
        return codes
    group = H // Hkv
    same = all(codes[i] == codes[i // group * group] for i in range(H))
    require(same, "permutation", lambda: f"the same code for the {group} heads of a key head", lambda: f"{list(codes)}")
    return codes[::group]


@overload
def paro_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    permutation: int | Sequence[int] | Tensor,
    grid: Sequence[int],
    *,
    text: Sequence[int] = (0, 0),
    rope: Rope | None = None,
    rope_pairs: str = "interleaved",
    qk: str = "int8",
    pv: str = "int8",
    smooth_k: bool = True,
    scale: float | None = None,
    return_lse: Literal[False] = False,
) -> Tensor: ...
@overload
def paro_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    permutation: int | Sequence[int] | Tensor,
    grid: Sequence[int],
    *,
    text: Sequence[int] = (0, 0),
    rope: Rope | None = None,
    rope_pairs: str = "interleaved",
    qk: str = "int8",
    pv: str = "int8",
    smooth_k: bool = True,
    scale: float | None = None,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def paro_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    permutation: int | Sequence[int] | Tensor,
    grid: Sequence[int],
    *,
    text: Sequence[int] = (0, 0),
    rope: Rope | None = None,
    rope_pairs: str = "interleaved",
    qk: str = "int8",
    pv: str = "int8",
    smooth_k: bool = True,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]: ...
def paro_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    permutation: int | Sequence[int] | Tensor,
    grid: Sequence[int],
    *,
    text: Sequence[int] = (0, 0),
    rope: Rope | None = None,
    rope_pairs: str = "interleaved",
    qk: str = "int8",
    pv: str = "int8",
    smooth_k: bool = True,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Self-attention over tokens of a grid (F, H, W), reordered per head, over the kept blocks of a mask, quantized.

    out = softmax(scale·R(q)·R(k)ᵀ)·v over the kept elements, where R rotates (RoPE). The mask counts blocks of the
    reordered sequence: element (i, j) is kept where the mask keeps the block of positions (π(i), π(j)) of the tokens i
    and j, or where a block of its row or column holds text. Inputs and results are in the order of the tokens.

    Args:
        q: [B, H, N, D], float32, bfloat16 or float16; D in [32, 256]; N = text[0] + F·H·W + text[1]. A last dimension
            that is not dense is copied.
        k: [B, Hkv, N, D], dtype of ``q``; H a multiple of Hkv.
        v: [B, Hkv, N, D], dtype of ``q``.
        block_mask: shape (N, N), of 1 or B batch entries and 1 or H heads, by position.
        permutation: the order of the axes, slowest first: 0 FHW, 1 FWH, 2 HWF, 3 HFW, 4 WHF, 5 WFH. One code, or one
            for each of H heads (the same for those that share a key head), or one for each of Hkv.
        grid: (F, H, W), the tokens between the text, row-major.
        text: tokens before and after the grid. They keep their places; every block that holds one is kept.
        rope: (cos, sin), float32 [N, D] or [N, D/2], or F·H·W rows, which leave the text as it is: y0 = x0·cos - x1·sin
            and y1 = x1·cos + x0·sin for each pair (x0, x1) of channels, with a factor each or one for both.
        rope_pairs: "interleaved": channels (2i, 2i + 1) are a pair (CogVideoX, Wan, Flux); "half": (i, i + D/2).
        qk: how q and k enter the scores: "int8" or "int4" codes with a scale for each query and each 64 keys, or
            "bf16".
        pv: how v enters: "int8" or "int4" codes or "fp8" (e4m3) with a scale for each channel, or "bf16". Weights are
            8-bit for codes, otherwise bfloat16.
        smooth_k: subtract the mean over the tokens from the keys before they are quantized. The softmax does not
            change, lse gets it back; outliers common to all keys then cost no precision. Without effect with
            qk="bf16".
        scale: positive factor of the scores; None is 1/sqrt(D).
        return_lse: also return the logarithm of the sum of exponentials.

    Returns:
        out [B, H, N, D] in the dtype of ``q``, contiguous; with ``return_lse`` also lse [B, H, N], float32, natural
        logarithm. A row whose mask keeps nothing gives 0 and -inf. Not differentiable.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong device, rank, shape or value, codes outside 0 to 5, a grid
            that does not hold N tokens. NotImplementedError: a device without kernels.

    A NaN or inf makes NaN of what shares its scale: the row of a query; of a key, every row that keeps its block of 64,
    and with ``smooth_k`` all rows of the head; of a value, its channel in all rows. A kept block takes 4·bm·bn·D
    operations. Memory beyond inputs and outputs is that of the operands, linear in N. Bitwise repeatable whatever the
    thread count.

    Source: PAROAttention (arXiv 2506.16054); smoothing of keys as in SageAttention (2410.02367).
    """
    require = checks.wrapper_require("paro_attention")
    attention.check_flag(require, "return_lse", return_lse)
    operands = _prepare(
        require, q, k, v, permutation, grid, text, rope, rope_pairs, qk, pv, smooth_k=smooth_k, need_lse=return_lse
    )
    return operands._attend(require, block_mask, scale, return_lse)
