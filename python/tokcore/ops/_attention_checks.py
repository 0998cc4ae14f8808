"""Checks of the attention ops: what the C++ entries check, in their order and wording, for wrappers and fakes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokcore import _library
from tokcore.ops import _checks as checks
from tokcore.ops._checks import DTYPES, Require, _dtype, _rank, _shape, _tensor, sizes

HEAD_DIMS = (32, 256)


def check_tensors(
    require: Require, q: Tensor, k: Tensor, v: Tensor | None = None, further: Mapping[str, Tensor] | None = None
) -> None:
    """The dtypes of q, k and v, then of what goes with q: fp32 if its name says lse, else q's."""
    _dtype(require, "q", q, DTYPES)
    _dtype(require, "k", k, (q.dtype,), " of q")
    if v is not None:
        _dtype(require, "v", v, (q.dtype,), " of q")
    for name, value in (further or {}).items():
        if name == "mask_bits":
            _dtype(require, name, value, (torch.int32,))
        elif name.endswith("lse"):
            _dtype(require, name, value, (torch.float32,))
        else:
            _dtype(require, name, value, (q.dtype,), " of q")


def check_devices(require: Require, q: Tensor, others: Mapping[str, Tensor]) -> None:
    """All tensors are where q is."""
    for name, value in others.items():
        device = value.device
        require(device == q.device, name, lambda: f"device {q.device} of q", lambda device=device: str(device))  # type: ignore[misc]


def check_supported_device(require: Require, q: Tensor) -> None:
    """q is where there are kernels, or has shapes only."""
    require(
        q.device.type in (*_library.devices(), "meta"),
        "q",
        lambda: "device " + _library.devices_text(q.device.type),
        lambda: str(q.device),
        NotImplementedError,
    )


def check_shapes(
    require: Require, q: Tensor, k: Tensor, v: Tensor | None = None, further: Mapping[str, Tensor] | None = None
) -> None:
    """q [B, H, M, D], k and v [B, Hkv, N, D], and what goes with q: [B, H, M] if its name says lse, else q's shape."""
    _rank(require, "q", q, 4)
    _rank(require, "k", k, 4)
    if v is not None:
        _rank(require, "v", v, 4)
    if further is not None and "mask_bits" in further:
        _rank(require, "mask_bits", further["mask_bits"], 4)
    require(
        k.size(0) == q.size(0) and k.size(3) == q.size(3),
        "k",
        lambda: f"shape [{q.size(0)}, Hkv, N, {q.size(3)}] (B and D of q)",
        lambda: sizes(k.shape),
    )
    heads, kv_heads = q.size(1), k.size(1)
    divides = heads == 0 if kv_heads == 0 else heads % kv_heads == 0
    require(divides, "k", lambda: f"a number of heads that divides {heads} (H of q)", lambda: f"{kv_heads}")
    if v is not None:
        _shape(require, "v", v, k.shape, "shape of k")
    for name, value in (further or {}).items():
        if name.endswith("lse"):
            _shape(require, name, value, q.shape[:3], "[B, H, M] of q")
        elif name != "mask_bits":
            _shape(require, name, value, q.shape, "shape of q")


def check_mask_bits(require: Require, q: Tensor, k: Tensor, mask_bits: Tensor, block_m: int, block_n: int) -> None:
    """The block sizes, and bits of the shape that they demand."""
    check_block_sizes(require, block_m, block_n)
    check_mask_shape(require, mask_bits, q.size(0), q.size(1), q.size(2), k.size(2), block_m, block_n)


def check_mask_shape(
    require: Require, mask_bits: Tensor, B: Any, H: Any, M: Any, N: Any, block_m: int, block_n: int
) -> None:
    """Bits for B batch entries, H heads, M queries and N keys."""
    rows, words = -(-M // block_m), -(-N // (32 * block_n))
    batch, heads = mask_bits.size(0), mask_bits.size(1)
    leading = (batch == 1 or batch == B) and (heads == 1 or heads == H)
    require(
        leading and mask_bits.size(2) == rows and mask_bits.size(3) == words,
        "mask_bits",
        lambda: f"shape [1 or {B}, 1 or {H}, {rows}, {words}] (B and H of q, blocks, words)",
        lambda: sizes(mask_bits.shape),
    )


def check_block_sizes(require: Require, block_m: int, block_n: int) -> None:
    """Each of 64 and 128."""
    for name, value in {"block_m": block_m, "block_n": block_n}.items():
        require(value in (64, 128), name, lambda: "64 or 128", lambda value=value: f"{value}")  # type: ignore[misc]


def check_range(require: Require, q: Tensor, scale: float) -> None:
    """The head size and the scale."""
    low, high = HEAD_DIMS
    head_dim = q.size(3)
    in_range = low <= head_dim and head_dim <= high
    require(in_range, "q", lambda: f"a last dimension in [{low}, {high}]", lambda: f"{head_dim}")
    require(0.0 < scale < math.inf, "scale", lambda: "a finite value > 0", lambda: f"{scale}")


def check_strides(require: Require, tensors: Mapping[str, Tensor]) -> None:
    """The one demand on strides: head vectors are dense."""
    for name, value in tensors.items():
        if value.numel() > 0 and value.size(3) > 1:
            stride = value.stride(3)
            require(stride == 1, name, lambda: "stride 1 in the last dimension", lambda stride=stride: f"{stride}")  # type: ignore[misc]


def check_public(require: Require, q: Tensor, k: Tensor, v: Tensor | None, scale: float | None) -> float:
    """The tensors and the scale of a public attention function; returns the scale, 1/sqrt(D) where none is given."""
    tensors = {"q": q, "k": k} if v is None else {"q": q, "k": k, "v": v}
    for name, value in tensors.items():
        _tensor(require, name, value)
    check_tensors(require, q, k, v)
    check_supported_device(require, q)
    check_devices(require, q, tensors)
    check_shapes(require, q, k, v)
    checks.check_positive(require, "scale", scale, optional=True)
    chosen = 1.0 / math.sqrt(q.size(3)) if scale is None else float(scale)
    check_range(require, q, chosen)
    return chosen


def dense_heads(x: Tensor) -> Tensor:
    """x itself where its last dimension is dense, else a copy."""
    return x if x.stride(-1) == 1 or x.size(-1) == 1 else x.contiguous()


def check_flag(require: Require, name: str, value: Any) -> None:
    """A bool such as ``causal``."""
    require(isinstance(value, bool), name, lambda: "a bool", lambda: type(value).__name__, TypeError)
