"""Checks of the KV cache's operators: what the C++ kernels check, in their order and wording."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokcore import _library
from tokcore.ops._checks import DTYPES, Require, _dtype, _rank, _shape, dtype_name, sizes

BITS = (8, 4, 2)
AXES = ("token", "channel")


def check_device(require: Require, name: str, value: Tensor) -> None:
    """The device of an op's first tensor has kernels."""
    require(
        value.device.type in (*_library.devices(), "meta"),
        name,
        lambda: "device " + _library.devices_text(value.device.type),
        lambda: str(value.device),
        NotImplementedError,
    )


def check_same_device(require: Require, name: str, value: Tensor, other: Tensor, other_name: str) -> None:
    """``value`` lies where ``other`` does."""
    same = value.device == other.device
    require(same, name, lambda: f"device {other.device} of {other_name}", lambda: str(value.device))


def check_real(require: Require, name: str, dtype: torch.dtype) -> None:
    """One of the dtypes that kernels compute with."""
    expected = "dtype " + " or ".join(map(dtype_name, DTYPES))
    require(dtype in DTYPES, name, lambda: expected, lambda: dtype_name(dtype), TypeError)


def check_bits(require: Require, bits: object) -> None:
    """8, 4 or 2."""
    require(bits in BITS, "bits", lambda: "8, 4 or 2", lambda: f"{bits}")


def check_axis(require: Require, axis: object, name: str = "axis") -> None:
    """``"token"`` or ``"channel"``."""
    require(axis in AXES, name, lambda: "'token' or 'channel'", lambda: f"'{axis}'")


def check_codes(require: Require, shaped: str, N: Any, D: Any, bits: int, axis: str, group: Any, rotate: bool) -> None:
    """Ranges of the quantization of [M, N, D]; ``shaped`` is the argument that the sizes come from."""
    check_bits(require, bits)
    check_axis(require, axis)
    per_byte = 8 // bits
    require(
        D % per_byte == 0 and D > 0,
        shaped,
        lambda: f"D a positive multiple of {per_byte} (codes in a byte)",
        lambda: f"{D}",
    )
    extent, letter = (D, "D") if axis == "token" else (N, "N")
    divides = group >= 1 and extent % group == 0
    require(divides, "group", lambda: f"a positive divisor of {extent} ({letter})", lambda: f"{group}")
    if rotate:
        require(power_of_two(D), "rotate", lambda: "False unless D is a power of two", lambda: f"D = {D}")


def power_of_two(value: Any) -> bool:
    """Whether the rotation exists for this many channels."""
    return bool(value > 0) and int(value) & (int(value) - 1) == 0


def check_channel_scale_type(require: Require, scale: Tensor | None, other: Tensor, other_name: str) -> None:
    """fp32, where the rest is."""
    if scale is not None:
        _dtype(require, "channel_scale", scale, (torch.float32,))
        check_same_device(require, "channel_scale", scale, other, other_name)


def check_channel_scale_shape(require: Require, scale: Tensor | None, M: Any, D: Any) -> None:
    """[C, D], C a divisor of M."""
    if scale is None:
        return
    _rank(require, "channel_scale", scale, 2)
    rows = scale.size(0)
    fits = rows >= 1 and M % rows == 0 and scale.size(1) == D
    require(fits, "channel_scale", lambda: f"shape [C, {D}] with C a divisor of {M}", lambda: sizes(scale.shape))


def check_unit_stride(require: Require, name: str, value: Tensor) -> None:
    """Rows are dense."""
    if value.numel() > 0 and value.size(-1) > 1:
        stride = value.stride(-1)
        require(stride == 1, name, lambda: "stride 1 in the last dimension", lambda: f"{stride}")


def scale_shape(M: Any, N: Any, D: Any, axis: str, group: Any) -> tuple[Any, Any, Any]:
    """Of the scales of [M, N, D]."""
    return (M, N, D // group) if axis == "token" else (M, N // group, D)


def check_scales(
    require: Require, scale: Tensor, zero: Tensor, shape: tuple[Any, ...], axis: str, symmetric: bool
) -> None:
    """Shapes of scale and zero."""
    _shape(require, "scale", scale, shape, "[M, N, D/group]" if axis == "token" else "[M, N/group, D]")
    if symmetric:
        _shape(require, "zero", zero, (0,), "empty when symmetric")
    else:
        _shape(require, "zero", zero, shape, "shape of scale")
