"""``kv_append``: new keys and values into a cache; what leaves the window is quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv
from tokcore.ops._kv_cache_checks import PAGE_SIZES, check_cache, page_size_of

if TYPE_CHECKING:
    from tokcore.quantized_kv_cache import Layer, QuantizedKVCache

_OPERATOR = torch.ops.tokcore.kv_append.default  # looked up once: a token is appended within microseconds


@torch.library.register_fake("tokcore::kv_append")  # type: ignore[untyped-decorator]
def _append_fake(
    k: Tensor,
    v: Tensor,
    slot_mapping: Tensor,
    lengths: Tensor,
    window_starts: Tensor,
    recent: list[Tensor],
    high: list[Tensor],
    low: list[Tensor],
    k_channel_scale: Tensor | None = None,
    v_channel_scale: Tensor | None = None,
    *,
    capacity: int,
    residual: int,
    page_size: int,
    k_axis: str = "token",
    v_axis: str = "token",
    rotate: bool = False,
) -> None:
    require = checks.fake_require("kv_append")
    tensors = (lengths, window_starts, recent, high, low, k_channel_scale, v_channel_scale)
    check_cache(require, *tensors, k_axis, v_axis, rotate)
    window = recent[0]
    checks._dtype(require, "k", k, (window.dtype,), " of recent.window_k")
    checks._dtype(require, "v", v, (window.dtype,))
    checks._dtype(require, "slot_mapping", slot_mapping, (torch.int64,))
    for name, value in {"k": k, "v": v, "slot_mapping": slot_mapping}.items():
        kv.check_same_device(require, name, value, window, "recent.window_k")
    checks._rank(require, "k", k, 3)
    shape = (k.size(0), window.size(1), window.size(3))
    checks._shape(require, "k", k, shape, "[T, Hkv, D]")
    checks._shape(require, "v", v, shape, "[T, Hkv, D] of k")
    checks._shape(require, "slot_mapping", slot_mapping, shape[:1], "T of k")
    require(page_size in PAGE_SIZES, "page_size", lambda: "16, 32, 64 or 128", lambda: f"{page_size}")
    most = window.size(2) - page_size
    fits = residual >= 0 and residual <= most
    require(fits, "residual", lambda: f"a value in [0, {most}] (W - page_size)", lambda: f"{residual}")
    legal = capacity >= 1 and capacity <= 2**30
    require(legal, "capacity", lambda: f"a value in [1, {2**30}]", lambda: f"{capacity}")
    kv.check_unit_stride(require, "k", k)
    kv.check_unit_stride(require, "v", v)
    found = page_size_of(high, low)
    require(found in (0, page_size), "page_size", lambda: f"{found} of the tiers", lambda: f"{page_size}")


def kv_append(cache: QuantizedKVCache, layer: int, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
    """Appends tokens to one layer of a cache.

    New tokens go into the sinks (positions below ``cache.sinks``) and the window. As soon as a whole page of tokens
    lies before the newest ``cache.residual`` ones it leaves the window: divided by the channel scales, rotated,
    quantized and packed in one pass, into the high tier while that has room, then into the low one.

    Args:
        cache: what to append to; changed in place.
        layer: which layer.
        k, v: [T, Hkv, D] of the cache's dtype.
        slot_mapping: int64 [T]; token t goes to sequence ``slot // capacity`` at position ``slot % capacity``, which
            is where that sequence ends; -1 leaves a token out.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape, a slot that is not the next one of its sequence
            (written before, or beyond a gap), a full sequence, a page number outside the pages. Nothing is written
            then. On CUDA, where nothing waits for the GPU, wrong values do not raise: the device refuses the append as
            a whole and the lengths stay as they were.

    Bitwise the same on every backend and for every thread count, and however tokens are cut into calls. Reads and
    writes each token once; a token that reaches a page is read again when it leaves the window.

    Sources: KIVI (arXiv 2402.02750) for the residual window, StreamingLLM (2309.17453) for the sinks.
    """
    if not _takes(cache, k, v, slot_mapping):
        _check(cache, k, v, slot_mapping)
    call_append(cache, cache.layer(layer), k, v, slot_mapping)


def _takes(cache: QuantizedKVCache, k: object, v: object, slot_mapping: object) -> bool:
    """Whether all is good that :func:`_check` looks at, in one look: what calls take microseconds for."""
    if not (isinstance(k, Tensor) and isinstance(v, Tensor) and isinstance(slot_mapping, Tensor)):
        return False
    shape = k.shape
    return (
        len(shape) == 3
        and shape == v.shape == (shape[0], cache.kv_heads, cache.head_dim)
        and slot_mapping.shape == shape[:1]
        and k.dtype is v.dtype is cache.dtype
        and slot_mapping.dtype is torch.int64
        and k.device == v.device == slot_mapping.device == cache.device
    )


def _check(cache: QuantizedKVCache, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
    """One respect after the other; raises for the first that is not good."""
    require = checks.wrapper_require("kv_append")
    for name, value in {"k": k, "v": v, "slot_mapping": slot_mapping}.items():
        checks._tensor(require, name, value)
    checks._dtype(require, "k", k, (cache.dtype,), " of the cache")
    checks._dtype(require, "v", v, (cache.dtype,), " of the cache")
    checks._dtype(require, "slot_mapping", slot_mapping, (torch.int64,))
    kv.check_device(require, "k", k)
    for name, value in {"k": k, "v": v, "slot_mapping": slot_mapping}.items():
        same = value.device == cache.device
        device = value.device
        require(same, name, lambda: f"device {cache.device} of the cache", lambda device=device: str(device))  # type: ignore[misc]
    checks._rank(require, "k", k, 3)
    shape = (k.size(0), cache.kv_heads, cache.head_dim)
    checks._shape(require, "k", k, shape, "[T, Hkv, D], Hkv and D of the cache")
    checks._shape(require, "v", v, shape, "[T, Hkv, D] of k")
    checks._shape(require, "slot_mapping", slot_mapping, shape[:1], "T of k")


def call_append(cache: QuantizedKVCache, state: Layer, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
    """Calls the operator; what only its kernel can find wrong with the values becomes a ValueError."""
    try:
        _OPERATOR(
            k if k.stride(-1) == 1 else k.contiguous(),
            v if v.stride(-1) == 1 else v.contiguous(),
            slot_mapping,
            *state.operands(),
            capacity=cache.capacity,
            residual=cache.residual,
            page_size=cache.page_size,
            k_axis=cache.k_axis,
            v_axis=cache.v_axis,
            rotate=cache.rotate,
        )
    except RuntimeError as error:
        raise checks.value_error("kv_append", error) from None
