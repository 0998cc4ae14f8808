"""Checks of a cache given as plain tensors: what the C++ kernels check of shapes and dtypes, for the fakes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokcore.ops import _kv_checks as kv
from tokcore.ops._checks import Require, _dtype, _rank, _shape, dtype_name, sizes

TIER_NAMES = (
    "k_pages",
    "v_pages",
    "k_scale",
    "k_zero",
    "v_scale",
    "v_zero",
    "page_table",
    "page_counts",
    "positions",
)
RECENT_NAMES = ("recent.window_k", "recent.window_v", "recent.sink_k", "recent.sink_v")
PAGE_SIZES = (16, 32, 64, 128)
GROUPS = (16, 32, 64, 128)


def check_cache(
    require: Require,
    lengths: Tensor,
    window_starts: Tensor,
    recent: Sequence[Tensor],
    high: Sequence[Tensor],
    low: Sequence[Tensor],
    k_channel_scale: Tensor | None,
    v_channel_scale: Tensor | None,
    k_axis: str,
    v_axis: str,
    rotate: bool,
) -> None:
    """In the order and wording of csrc/kv_cache/cache_check.h."""
    _check_lists(require, recent, high, low, k_axis, v_axis)
    _check_types(require, lengths, window_starts, recent, high, low, k_channel_scale, v_channel_scale)
    _check_devices(require, lengths, window_starts, recent, high, low, k_channel_scale, v_channel_scale)
    _check_recent(require, lengths, window_starts, recent, k_channel_scale, v_channel_scale)
    page_size: Any = 0
    for name, tier in (("high", high), ("low", low)):
        if tier:
            page_size = _check_tier(require, name, tier, recent[0], k_axis, v_axis, page_size)
    D = recent[0].size(3)
    if rotate:
        require(kv.power_of_two(D), "rotate", lambda: "False unless D is a power of two", lambda: f"D = {D}")


def page_size_of(high: Sequence[Tensor], low: Sequence[Tensor]) -> Any:
    """Of the tiers; 0 without one."""
    return next((tier[0].size(2) for tier in (high, low) if tier), 0)


def _check_lists(
    require: Require,
    recent: Sequence[Tensor],
    high: Sequence[Tensor],
    low: Sequence[Tensor],
    k_axis: str,
    v_axis: str,
) -> None:
    require(len(recent) == 4, "recent", lambda: "4 tensors", lambda: f"{len(recent)}")
    for name, tier in (("high", high), ("low", low)):
        count = len(tier)
        require(count in (0, 9), name, lambda: "0 or 9 tensors", lambda count=count: f"{count}")  # type: ignore[misc]
    kv.check_axis(require, k_axis, "k_axis")
    kv.check_axis(require, v_axis, "v_axis")


def _check_types(
    require: Require,
    lengths: Tensor,
    window_starts: Tensor,
    recent: Sequence[Tensor],
    high: Sequence[Tensor],
    low: Sequence[Tensor],
    k_channel_scale: Tensor | None,
    v_channel_scale: Tensor | None,
) -> None:
    dtype = recent[0].dtype
    kv.check_real(require, RECENT_NAMES[0], dtype)
    for name, value in zip(RECENT_NAMES[1:], recent[1:], strict=True):
        _dtype(require, name, value, (dtype,))
    _dtype(require, "lengths", lengths, (torch.int32,))
    _dtype(require, "window_starts", window_starts, (torch.int32,))
    for prefix, tier in (("high", high), ("low", low)):
        if not tier:
            continue
        parts = {f"{prefix}.{name}": value for name, value in zip(TIER_NAMES, tier, strict=True)}
        for name in (f"{prefix}.k_pages", f"{prefix}.v_pages"):
            got = parts[name].dtype
            require(
                got in (dtype, torch.uint8),
                name,
                lambda: f"dtype uint8 or {dtype_name(dtype)} of recent.window_k",
                lambda got=got: dtype_name(got),  # type: ignore[misc]
            )
        for name in ("k_scale", "k_zero", "v_scale", "v_zero"):
            _dtype(require, f"{prefix}.{name}", parts[f"{prefix}.{name}"], (torch.bfloat16,))
        for name in ("page_table", "page_counts"):
            _dtype(require, f"{prefix}.{name}", parts[f"{prefix}.{name}"], (torch.int32,))
        _dtype(require, f"{prefix}.positions", parts[f"{prefix}.positions"], (torch.int32, torch.uint16))
    for name, scale in (("k_channel_scale", k_channel_scale), ("v_channel_scale", v_channel_scale)):
        if scale is not None:
            _dtype(require, name, scale, (torch.float32,))


def _check_devices(
    require: Require,
    lengths: Tensor,
    window_starts: Tensor,
    recent: Sequence[Tensor],
    high: Sequence[Tensor],
    low: Sequence[Tensor],
    k_channel_scale: Tensor | None,
    v_channel_scale: Tensor | None,
) -> None:
    named = dict(zip(RECENT_NAMES[1:], recent[1:], strict=True))
    named |= {"lengths": lengths, "window_starts": window_starts}
    for prefix, tier in (("high", high), ("low", low)):
        if tier:
            named |= {f"{prefix}.{name}": value for name, value in zip(TIER_NAMES, tier, strict=True)}
    scales = {"k_channel_scale": k_channel_scale, "v_channel_scale": v_channel_scale}
    named |= {name: scale for name, scale in scales.items() if scale is not None}
    for name, value in named.items():
        kv.check_same_device(require, name, value, recent[0], RECENT_NAMES[0])


def _contiguous(require: Require, name: str, value: Tensor, shape: Sequence[Any], note: str) -> None:
    _shape(require, name, value, shape, note)
    strides = value.stride()
    require(value.is_contiguous(), name, lambda: "a contiguous tensor", lambda: f"strides {sizes(strides)}")


def _check_recent(
    require: Require,
    lengths: Tensor,
    window_starts: Tensor,
    recent: Sequence[Tensor],
    k_channel_scale: Tensor | None,
    v_channel_scale: Tensor | None,
) -> None:
    _rank(require, RECENT_NAMES[0], recent[0], 4)
    _rank(require, RECENT_NAMES[2], recent[2], 4)
    B, H, W, D = recent[0].shape
    S = recent[2].size(2)
    for i, (name, value) in enumerate(zip(RECENT_NAMES, recent, strict=True)):
        note = "[B, Hkv, W, D] of recent.window_k" if i < 2 else "[B, Hkv, S, D]"
        _contiguous(require, name, value, (B, H, W if i < 2 else S, D), note)
    _contiguous(require, "lengths", lengths, (B,), "B of recent.window_k")
    _contiguous(require, "window_starts", window_starts, (B,), "B of recent.window_k")
    known = D >= 32 and D <= 256 and D % 32 == 0
    require(known, RECENT_NAMES[0], lambda: "D a multiple of 32 in [32, 256]", lambda: f"{D}")
    require(W >= 1, RECENT_NAMES[0], lambda: "W >= 1", lambda: f"{W}")
    for name, scale in (("k_channel_scale", k_channel_scale), ("v_channel_scale", v_channel_scale)):
        if scale is not None:
            _contiguous(require, name, scale, (H, D), "[Hkv, D]")


def _check_tier(
    require: Require, prefix: str, tier: Sequence[Tensor], window: Tensor, k_axis: str, v_axis: str, page_size: Any
) -> Any:
    parts = dict(zip(TIER_NAMES, tier, strict=True))
    k_pages, table, positions = parts["k_pages"], parts["page_table"], parts["positions"]
    B, H = window.size(0), window.size(1)
    _rank(require, f"{prefix}.k_pages", k_pages, 4)
    P, found = k_pages.size(0), k_pages.size(2)
    require(found in PAGE_SIZES, f"{prefix}.k_pages", lambda: "a page size of 16, 32, 64 or 128", lambda: f"{found}")
    same = page_size in (0, found)
    require(same, f"{prefix}.k_pages", lambda: f"page size {page_size} of high.k_pages", lambda: f"{found}")
    _rank(require, f"{prefix}.page_table", table, 2)
    _contiguous(require, f"{prefix}.page_table", table, (B, table.size(1)), "[B, width]")
    _contiguous(require, f"{prefix}.page_counts", parts["page_counts"], (B,), "B")
    if positions.numel() > 0:
        _contiguous(require, f"{prefix}.positions", positions, (P, H, found), "[P, Hkv, page size]")
    k_coded = _check_pages(require, prefix, "k", parts, window, P, found, k_axis)
    v_coded = _check_pages(require, prefix, "v", parts, window, P, found, v_axis)
    expected = f"dtype {'uint8' if k_coded else 'of the window'} as {prefix}.k_pages (codes for both or for none)"
    got = parts["v_pages"].dtype
    require(k_coded == v_coded, f"{prefix}.v_pages", lambda: expected, lambda: dtype_name(got))
    return found


def _check_pages(
    require: Require,
    prefix: str,
    kind: str,
    parts: dict[str, Tensor],
    window: Tensor,
    P: Any,
    page_size: Any,
    axis: str,
) -> bool:
    name, pages = f"{prefix}.{kind}_pages", parts[f"{kind}_pages"]
    scale, zero = parts[f"{kind}_scale"], parts[f"{kind}_zero"]
    H, D = window.size(1), window.size(3)
    _rank(require, name, pages, 4)
    if pages.dtype != torch.uint8:
        _contiguous(require, name, pages, (P, H, page_size, D), "[P, Hkv, page size, D]")
        return False
    row = pages.size(3)
    known = row == D or row * 2 == D or row * 4 == D
    require(known, name, lambda: f"D * bits / 8 bytes a row with bits 8, 4 or 2 and D = {D}", lambda: f"{row}")
    _contiguous(require, name, pages, (P, H, page_size, row), "[P, Hkv, page size, bytes]")
    _rank(require, f"{prefix}.{kind}_scale", scale, 4)
    by_token = axis == "token"
    groups, extent = scale.size(2), D if by_token else page_size
    divides = groups >= 1 and extent % groups == 0 and (groups == 1 or extent // groups in GROUPS)
    expected = (
        f"groups of 16, 32, 64, 128 or D = {D} channels" if by_token else "groups of 16, 32, 64 or 128 tokens of a page"
    )
    require(divides, f"{prefix}.{kind}_scale", lambda: expected, lambda: sizes(scale.shape))
    shape = (P, H, groups, page_size if by_token else D)
    note = "[P, Hkv, D / group, page size]" if by_token else "[P, Hkv, page size / group, D]"
    _contiguous(require, f"{prefix}.{kind}_scale", scale, shape, note)
    if zero.numel() > 0:
        _contiguous(require, f"{prefix}.{kind}_zero", zero, shape, "shape of the scale")
    return True
