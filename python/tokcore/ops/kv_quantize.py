"""``kv_quantize``: keys or values as codes of 8, 4 or 2 bits with a scale and a zero per group, and back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv


@torch.library.register_fake("tokcore::kv_quantize")  # type: ignore[untyped-decorator]
def _quantize_fake(
    x: Tensor,
    bits: int,
    axis: str,
    group: int,
    symmetric: bool = False,
    channel_scale: Tensor | None = None,
    *,
    rotate: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    require = checks.fake_require("kv_quantize")
    kv.check_real(require, "x", x.dtype)
    kv.check_channel_scale_type(require, channel_scale, x, "x")
    checks._rank(require, "x", x, 3)
    M, N, D = x.shape
    kv.check_channel_scale_shape(require, channel_scale, M, D)
    kv.check_codes(require, "x", N, D, bits, axis, group, rotate)
    kv.check_unit_stride(require, "x", x)
    scales = kv.scale_shape(M, N, D, axis, group)
    return (
        x.new_empty((M, N, D * bits // 8), dtype=torch.uint8),
        x.new_empty(scales, dtype=torch.bfloat16),
        x.new_empty((0,) if symmetric else scales, dtype=torch.bfloat16),
    )


@torch.library.register_fake("tokcore::kv_dequantize")  # type: ignore[untyped-decorator]
def _dequantize_fake(
    packed: Tensor,
    scale: Tensor,
    zero: Tensor,
    bits: int,
    axis: str,
    group: int,
    symmetric: bool = False,
    channel_scale: Tensor | None = None,
    *,
    rotate: bool = False,
    dtype: torch.dtype,
) -> Tensor:
    require = checks.fake_require("kv_dequantize")
    checks._dtype(require, "packed", packed, (torch.uint8,))
    checks._dtype(require, "scale", scale, (torch.bfloat16,))
    checks._dtype(require, "zero", zero, (torch.bfloat16,))
    kv.check_real(require, "dtype", dtype)
    kv.check_same_device(require, "scale", scale, packed, "packed")
    kv.check_same_device(require, "zero", zero, packed, "packed")
    kv.check_channel_scale_type(require, channel_scale, packed, "packed")
    checks._rank(require, "packed", packed, 3)
    kv.check_bits(require, bits)
    kv.check_axis(require, axis)
    M, N, D = packed.size(0), packed.size(1), packed.size(2) * 8 // bits
    kv.check_codes(require, "packed", N, D, bits, axis, group, rotate)
    kv.check_scales(require, scale, zero, kv.scale_shape(M, N, D, axis, group), axis, symmetric)
    kv.check_channel_scale_shape(require, channel_scale, M, D)
    return packed.new_empty((M, N, D), dtype=dtype)


@dataclass(frozen=True)
class Quantized:
    """Codes with what is needed to read them.

    ``packed`` is uint8 [..., N, D·bits/8]: byte j of a row holds channels j, j + D/n, j + 2·D/n, … from its low bits
    up, with n = 8/bits. ``scale`` and ``zero`` are bfloat16 [..., N, D/group] (axis token) or [..., N/group, D] (axis
    channel); ``zero`` is None when symmetric. With c a code, x̂ = c·scale + zero, or (c - 2^(bits-1))·scale when
    symmetric; then the rotation is undone and ``channel_scale`` multiplied back.
    """

    packed: Tensor
    scale: Tensor
    zero: Tensor | None
    bits: int
    axis: str
    group: int
    channel_scale: Tensor | None
    rotate: bool
    dtype: torch.dtype  # of what was quantized

    @property
    def symmetric(self) -> bool:
        """Whether codes are centred, without a zero."""
        return self.zero is None

    @property
    def shape(self) -> torch.Size:
        """Shape of what was quantized, [..., N, D]."""
        return torch.Size((*self.packed.shape[:-1], self.packed.size(-1) * 8 // self.bits))

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and zeros."""
        return sum(part.nbytes for part in (self.packed, self.scale, self.zero) if part is not None)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """x̂ [..., N, D] in ``dtype``, by default that of the original."""
        wanted = self.dtype if dtype is None else dtype
        kv.check_real(checks.wrapper_require("kv_quantize"), "dtype", wanted)
        M = math.prod(self.packed.shape[:-2])
        scale, zero = self.scale, self.scale.new_empty(0) if self.zero is None else self.zero
        x = torch.ops.tokcore.kv_dequantize(
            self.packed.reshape(M, *self.packed.shape[-2:]),
            scale.reshape(M, *scale.shape[-2:]),
            zero.reshape(M, *scale.shape[-2:]) if self.zero is not None else zero,
            self.bits,
            self.axis,
            self.group,
            self.symmetric,
            self.channel_scale,
            rotate=self.rotate,
            dtype=wanted,
        )
        return x.reshape(self.shape)  # type: ignore[no-any-return]


def kv_quantize(
    x: Tensor,
    bits: int = 8,
    axis: str = "token",
    group: int | None = None,
    symmetric: bool = False,
    channel_scale: Tensor | None = None,
    rotate: bool = False,
) -> Quantized:
    """Quantizes keys or values uniformly, with a scale (and a zero) per group.

    A group is ``group`` neighbouring channels of one token (``axis="token"``) or one channel of ``group`` neighbouring
    tokens (``"channel"``). With y = x / channel_scale, rotated if asked:
    zero = min y rounded down to bfloat16, scale = (max y - zero)/(2^bits - 1) rounded up, c = round((y - zero)/scale);
    symmetric: scale = max|y|/(2^(bits-1) - 1), c = round(y/scale) + 2^(bits-1) in [1, 2^bits - 1].
    Then |y - ŷ| <= scale/2 plus fp32 rounding.

    Args:
        x: [..., N, D], float32, bfloat16 or float16; N tokens of D channels, D a multiple of 8/bits.
        bits: 8, 4 or 2.
        axis: ``"token"`` or ``"channel"``.
        group: a divisor of D (axis token) or of N (axis channel); None is all of it.
        symmetric: no zero; codes are centred. With 2 bits that leaves three levels.
        channel_scale: float32 [D], or [Hkv, D] for x [..., Hkv, N, D]: finite values > 0 that are divided out first
            (ZipCache's channel-separable scheme, MiKV's balancer) and multiplied back by :meth:`Quantized.dequantize`.
        rotate: rotates each token's channels by a Hadamard matrix with fixed signs, which spreads outliers; D is a
            power of two.

    Returns:
        :class:`Quantized`.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong rank, shape or value. NotImplementedError: a device
            without kernels. On CUDA, where nothing waits for the GPU, a channel scale that is not finite and positive
            makes NaN instead.

    A group that holds a NaN or an infinity, or whose range overflows, comes back as NaN altogether. Codes, scales and
    zeros are the same bits on every backend, instruction-set level and thread count. Reads x once and writes the codes:
    bound by memory, or by the D·log2 D additions a token of the rotation.

    Sources: MiKV (arXiv 2402.18096), ZipCache (2405.14256), KIVI (2402.02750).
    """
    require = checks.wrapper_require("kv_quantize")
    checks._tensor(require, "x", x)
    if channel_scale is not None:
        checks._tensor(require, "channel_scale", channel_scale)
    kv.check_real(require, "x", x.dtype)
    if channel_scale is not None:
        checks._dtype(require, "channel_scale", channel_scale, (torch.float32,))
    kv.check_device(require, "x", x)
    if channel_scale is not None:
        kv.check_same_device(require, "channel_scale", channel_scale, x, "x")
    require(x.dim() >= 2, "x", lambda: "at least 2 dimensions", lambda: f"{x.dim()}")
    N, D = x.shape[-2:]
    rows = _channel_scale_rows(require, x, channel_scale)
    kv.check_bits(require, bits)
    kv.check_axis(require, axis)
    if group is None:
        group = max(1, D if axis == "token" else N)
    given: object = group
    is_int = isinstance(given, (int, torch.SymInt)) and not isinstance(given, bool)
    require(is_int, "group", lambda: "an int or None", lambda: type(given).__name__, TypeError)
    kv.check_codes(require, "x", N, D, bits, axis, group, rotate)
    M = math.prod(x.shape[:-2])
    flat = x.reshape(M, N, D)
    if flat.numel() > 0 and flat.stride(-1) != 1:
        flat = flat.contiguous()
    packed, scale, zero = _call((flat, bits, axis, group, symmetric, rows), rotate=rotate)
    leading = x.shape[:-2]
    return Quantized(
        packed=packed.reshape(*leading, *packed.shape[1:]),
        scale=scale.reshape(*leading, *scale.shape[1:]),
        zero=None if symmetric else zero.reshape(*leading, *zero.shape[1:]),
        bits=bits,
        axis=axis,
        group=group,
        channel_scale=rows,
        rotate=rotate,
        dtype=x.dtype,
    )


def _channel_scale_rows(require: checks.Require, x: Tensor, channel_scale: Tensor | None) -> Tensor | None:
    """[D] or [Hkv, D] as [C, D]."""
    if channel_scale is None:
        return None
    D = x.size(-1)
    per_head = x.dim() >= 3 and channel_scale.dim() == 2
    shape = (x.size(-3), D) if per_head else (D,)
    note = "[Hkv, D] of x" if per_head else "D of x, or [Hkv, D]"
    checks._shape(require, "channel_scale", channel_scale, shape, note)
    return channel_scale if per_head else channel_scale.unsqueeze(0)


def _call(arguments: tuple[Any, ...], **options: Any) -> Any:
    """Calls the op; what only its kernel can find wrong with the values becomes a ValueError."""
    op = torch.ops.tokcore.kv_quantize
    if torch.compiler.is_compiling():
        return op(*arguments, **options)
    try:
        return op(*arguments, **options)
    except RuntimeError as error:
        text = str(error).splitlines()[0]
        if "argument 'channel_scale': expected finite values" not in text:
            raise
        raise ValueError(text) from None
