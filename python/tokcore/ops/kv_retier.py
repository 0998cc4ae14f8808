"""``kv_retier``: sorts the tokens of a cache between its precise and its small tier, by importance."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv
from tokcore.ops._kv_cache_checks import check_cache

if TYPE_CHECKING:
    from tokcore.quantized_kv_cache import Layer, QuantizedKVCache


@torch.library.register_fake("tokcore::kv_retier")  # type: ignore[untyped-decorator]
def _retier_fake(
    scores: Tensor,
    high_pages: Tensor,
    lengths: Tensor,
    window_starts: Tensor,
    recent: list[Tensor],
    high: list[Tensor],
    low: list[Tensor],
    k_channel_scale: Tensor | None = None,
    v_channel_scale: Tensor | None = None,
    *,
    k_axis: str = "token",
    v_axis: str = "token",
    rotate: bool = False,
) -> None:
    require = checks.fake_require("kv_retier")
    tensors = (lengths, window_starts, recent, high, low, k_channel_scale, v_channel_scale)
    check_cache(require, *tensors, k_axis, v_axis, rotate)
    for name, tier in (("high", high), ("low", low)):
        require(len(tier) > 0, name, lambda: "a tier", lambda: "none")
        listed = tier[8].numel() > 0 or tier[0].numel() == 0
        require(listed, f"{name}.positions", lambda: "a list of positions", lambda: "an empty one")
    checks._dtype(require, "scores", scores, (torch.float32,))
    checks._dtype(require, "high_pages", high_pages, (torch.int32,))
    for name, value in {"scores": scores, "high_pages": high_pages}.items():
        kv.check_same_device(require, name, value, recent[0], "recent.window_k")
    B, H = recent[0].size(0), recent[0].size(1)
    checks._rank(require, "scores", scores, 3)
    checks._shape(require, "scores", scores, (B, H, scores.size(2)), "[B, Hkv, N]")
    checks._shape(require, "high_pages", high_pages, (B,), "B")
    kv.check_unit_stride(require, "scores", scores)


def pages_for_mass(state: Layer, scores: Tensor, mass: float, page_size: int, sinks: int) -> Tensor:
    """Pages [B] for the fewest tokens whose share of the paged tokens' scores, averaged over heads, is mass."""
    assert state.high is not None
    assert state.low is not None
    counts = state.high.page_counts + state.low.page_counts
    wanted = torch.zeros_like(counts)
    for b in range(counts.size(0)):
        end = int(counts[b]) * page_size
        if end == 0:
            continue
        ranked = scores[b, :, sinks : sinks + end].double().clamp(min=0).sort(dim=-1, descending=True).values
        share = (ranked.cumsum(-1) / ranked.sum(-1, keepdim=True).clamp(min=1e-300)).mean(0)
        tokens = min(int((share < mass).sum()) + 1, end)
        wanted[b] = math.ceil(tokens / page_size)
    return wanted


def _check_room(require: checks.Require, wanted: Tensor, room: int) -> None:
    """A mass that the high tier cannot hold would be missed."""
    most = int(wanted.max()) if wanted.numel() else 0
    row = int(wanted.argmax()) if wanted.numel() else 0
    require(
        most <= room,
        "mass",
        lambda: f"one that at most {room} pages hold (room of the high tier)",
        lambda: f"one that needs {most} in sequence {row}",
    )


def kv_retier(
    cache: QuantizedKVCache, layer: int, scores: Tensor, ratio: float | None = None, mass: float | None = None
) -> Tensor:
    """Promotes and demotes tokens of one layer: the important ones lie in the high tier afterwards.

    Of every sequence and head, the tokens in pages are ranked by score (equal ones by position, NaN first). The first
    ones fill pages of the high tier, as many as ``ratio`` or ``mass`` asks for, and at least as many as the low tier
    cannot hold; the others go to the low tier. A ``ratio`` beyond the room of the high tier fills it, which the result
    tells; a ``mass`` that needs more raises, as it would not be reached. Every token keeps its position and
    none is dropped. A token that stays in its tier keeps its codes bit for bit where scales are by token; one that
    moves, and keys or values that share scales by channel, are quantized from what their codes stood for.

    Args:
        cache: a cache with two tiers; changed in place.
        layer: which layer.
        scores: float32 [B, Hkv, N] by position, such as :func:`tokcore.kv_saliency` gives; N covers the pages.
        ratio: share of the paged tokens that are important, in [0, 1].
        mass: or the share of the scores' sum that they shall hold, in (0, 1]: the least number of tokens, the same for
            all heads of a sequence, whose share averaged over the heads reaches it.

    Returns:
        int32 [B]: tokens of each sequence (and head) in the high tier.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape or value, not exactly one of ``ratio`` and ``mass``,
            a cache without two tiers, a mass whose tokens the high tier has no room for, a page table or a list of
            positions that is not as kv_append left it. Nothing is changed then. On CUDA, what page tables, positions,
            lengths or channel scales hold does not raise, as that would wait for the kernels: the device refuses the
            call as a whole, the layer stays as it was, and the result says so.

    On CUDA the function waits for the GPU, to read how many pages there are, and with ``mass`` the scores;
    ``torch.ops.tokcore.kv_retier``, which takes the numbers of pages as a tensor, waits for nothing. It takes memory
    for a copy of the layer's pages.

    Reads and writes the layer's pages once. Bitwise repeatable whatever the thread count.

    Sources: MiKV (arXiv 2402.18096), ZipCache (2405.14256), ZipVL (2410.08584, mass).
    """
    require = checks.wrapper_require("kv_retier")
    checks._tensor(require, "scores", scores)
    checks._dtype(require, "scores", scores, (torch.float32,))
    kv.check_device(require, "scores", scores)
    same = scores.device == cache.device
    require(same, "scores", lambda: f"device {cache.device} of the cache", lambda: str(scores.device))
    state = cache.layer(layer)
    high, low = state.high, state.low
    kinds = f"high={cache.high!r}, low={cache.low!r}"
    require(high is not None and low is not None, "cache", lambda: "a cache with two tiers", lambda: kinds)
    assert high is not None
    assert low is not None
    checks._rank(require, "scores", scores, 3)
    shape = (cache.batch, cache.kv_heads, scores.size(2))
    checks._shape(require, "scores", scores, shape, "[B, Hkv, N], B and Hkv of the cache")
    one = (ratio is None) != (mass is None)
    require(one, "ratio", lambda: "one of ratio and mass", lambda: f"ratio={ratio}, mass={mass}")
    total = high.page_counts + low.page_counts
    end = int(total.max()) * cache.page_size + cache.sinks if total.numel() else 0
    covers = not bool(total.any()) or scores.size(2) >= end
    require(covers, "scores", lambda: f"N >= {end} (positions in pages)", lambda: f"{scores.size(2)}")
    if mass is not None:
        checks._number(require, "mass", mass)
        require(0.0 < mass <= 1.0, "mass", lambda: "a value in (0, 1]", lambda: f"{mass}")
        wanted = pages_for_mass(state, scores, mass, cache.page_size, cache.sinks)
        _check_room(require, wanted, high.page_table.size(1))
    else:
        checks._number(require, "ratio", ratio)
        assert ratio is not None
        require(0.0 <= ratio <= 1.0, "ratio", lambda: "a value in [0, 1]", lambda: f"{ratio}")
        wanted = (total * ratio).ceil().to(torch.int32)
    least = (total - low.page_table.size(1)).clamp(min=0)
    most = total.clamp(max=high.page_table.size(1))
    wanted = torch.minimum(torch.maximum(wanted, least), most).to(torch.int32)
    dense = scores if scores.stride(-1) == 1 else scores.contiguous()
    operands = state.operands()
    options = {"k_axis": cache.k_axis, "v_axis": cache.v_axis, "rotate": cache.rotate}
    try:
        torch.ops.tokcore.kv_retier(dense, wanted, *operands, **options)
    except RuntimeError as error:
        raise checks.value_error("kv_retier", error) from None
    return high.page_counts * cache.page_size
