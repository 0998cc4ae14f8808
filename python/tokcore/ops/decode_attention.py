"""``decode_attention``: a few new queries attend a whole cache, every tier, the window and the sinks, in one call."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv
from tokcore.ops._kv_cache_checks import check_cache
from tokcore.ops.tree_links import MOST_NODES, num_words

if TYPE_CHECKING:
    from tokcore.quantized_kv_cache import QuantizedKVCache
    from tokcore.token_tree import TokenTree


def _check_tree_tensors(
    require: checks.Require, q: Tensor, ancestors: Tensor | None, depths: Tensor | None, counts: Tensor | None
) -> None:
    """In the order and wording of csrc/kv_cache/decode_attention_check.h."""
    given = ancestors is not None
    expected, got = ("a Tensor with tree_ancestors", "None") if given else ("None without tree_ancestors", "a Tensor")
    require((depths is not None) == given, "tree_depths", lambda: expected, lambda: got)
    require((counts is not None) == given, "tree_counts", lambda: expected, lambda: got)
    if ancestors is None or depths is None or counts is None:
        return
    checks._dtype(require, "tree_ancestors", ancestors, (torch.int64,))
    checks._dtype(require, "tree_depths", depths, (torch.int32,))
    checks._dtype(require, "tree_counts", counts, (torch.int32,))
    named = {"tree_ancestors": ancestors, "tree_depths": depths, "tree_counts": counts}
    for name, value in named.items():
        kv.check_same_device(require, name, value, q, "q")
    B, M = q.size(0), q.size(1)
    fits = M >= 1 and M <= MOST_NODES
    require(fits, "q", lambda: f"M in [1, {MOST_NODES}] with a tree", lambda: f"{M}")
    shapes = {
        "tree_ancestors": ((B, M, num_words(M)), "[B, M, ceil(M / 64)], B and M of q"),
        "tree_depths": ((B, M), "[B, M] of q"),
        "tree_counts": ((B,), "B of q"),
    }
    for name, (shape, note) in shapes.items():
        checks._shape(require, name, named[name], shape, note)
        strides = named[name].stride()
        contiguous = named[name].is_contiguous()
        require(
            contiguous,
            name,
            lambda: "a contiguous tensor",
            lambda strides=strides: f"strides {checks.sizes(strides)}",  # type: ignore[misc]
        )


@torch.library.register_fake("tokcore::decode_attention")  # type: ignore[untyped-decorator]
def _decode_fake(
    q: Tensor,
    lengths: Tensor,
    window_starts: Tensor,
    recent: list[Tensor],
    high: list[Tensor],
    low: list[Tensor],
    k_channel_scale: Tensor | None = None,
    v_channel_scale: Tensor | None = None,
    tree_ancestors: Tensor | None = None,
    tree_depths: Tensor | None = None,
    tree_counts: Tensor | None = None,
    *,
    scale: float,
    softcap: float | None = None,
    window: int | None = None,
    k_axis: str = "token",
    v_axis: str = "token",
    rotate: bool = False,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor]:
    require = checks.fake_require("decode_attention")
    tensors = (lengths, window_starts, recent, high, low, k_channel_scale, v_channel_scale)
    check_cache(require, *tensors, k_axis, v_axis, rotate)
    checks._dtype(require, "q", q, (recent[0].dtype,))
    kv.check_same_device(require, "q", q, recent[0], "recent.window_k")
    checks._rank(require, "q", q, 4)
    M, H = q.size(1), q.size(2)
    B, Hkv, _, D = recent[0].shape
    checks._shape(require, "q", q, (B, M, H, D), "[B, M, H, D], B and D of the cache")
    grouped = H > 0 and H % Hkv == 0
    require(grouped, "q", lambda: f"H a positive multiple of {Hkv} (Hkv)", lambda: f"{H}")
    require(math.isfinite(scale), "scale", lambda: "a finite value", lambda: f"{scale}")
    if softcap is not None:
        require(0.0 < softcap < math.inf, "softcap", lambda: "a finite value > 0 or None", lambda: f"{softcap}")
    if window is not None:
        require(window >= 1, "window", lambda: "a value >= 1 or None", lambda: f"{window}")
    kv.check_unit_stride(require, "q", q)
    _check_tree_tensors(require, q, tree_ancestors, tree_depths, tree_counts)
    return q.new_empty((B, M, H, D)), q.new_empty((B, H, M) if return_lse else (0,), dtype=torch.float32)


def decode_attention(
    q: Tensor,
    cache: QuantizedKVCache,
    layer: int,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: int | None = None,
    tree: TokenTree | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of new queries over one layer of a cache.

    z = softcap·tanh(scale·q·k̂/softcap) (without softcap scale·q·k̂), out = Σ softmax(z)·v̂, lse = log Σ exp z, over the
    positions that a query sees. The last M tokens of every sequence are the queries' own: query i of a sequence of n
    tokens stands at position n - M + i and sees the positions up to it. Head h of q reads head h // (H/Hkv) of the
    cache.

    With a tree, query i is node i: the last ``tree.counts[b]`` tokens of sequence b are the nodes, appended in their
    order. A node stands at position prefix + depth, prefix = n - counts[b], and sees what lies before the tree, itself
    and its ancestors; windows and sinks go by these positions. A chain gives bit for bit what no tree gives.

    Args:
        q: [B, M, H, D] of the cache's dtype; H a multiple of Hkv. M = tree.num_nodes with a tree.
        cache: a cache to which the keys and values of the queries' own tokens were appended.
        layer: which layer.
        scale: None is D^(-1/2).
        softcap: positive bound of the scores, or None.
        window: a query sees the last ``window`` positions, its own included, and the cache's sinks; None is all.
        tree: what the queries are; None is a chain. Rows of q beyond a tree's nodes are not read.
        return_lse: also return lse.

    Returns:
        out [B, M, H, D] in the dtype of q; with ``return_lse`` also lse, float32 [B, H, M], natural logarithm. A query
        that sees nothing, or is no node of its tree, gets zeros, and -inf.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape or value. NotImplementedError: a device without
            kernels. On CUDA, where nothing waits for the GPU, values of the cache's tensors do not raise: a length or
            count out of range makes its sequence's outputs NaN, a page that is nowhere those of queries that see it.

    4·B·M·H·N·D FLOPs for N cached tokens; every page, scale and row of the window is read once and nothing is
    dequantized in memory: with AMX, integer products take codes as they are (queries and weights rounded to 16 bits);
    float32 queries, and other instruction sets, compute in fp32. On CUDA products are of fp16, beside codes that are
    exact in it. Where page tables of several sequences begin with the same pages (:meth:`QuantizedKVCache.fork`), the
    CPU reads these once for all of them, unless there is a window; no bit of the results depends on it. Bitwise
    repeatable whatever the thread count.

    Sources: MiKV (arXiv 2402.18096), ZipCache (2405.14256); split and merge as in FlashDecoding; SpecInfer (2305.09781)
    for tree attention.
    """
    require = checks.wrapper_require("decode_attention")
    checks._tensor(require, "q", q)
    checks._dtype(require, "q", q, (cache.dtype,), " of the cache")
    kv.check_device(require, "q", q)
    require(q.device == cache.device, "q", lambda: f"device {cache.device} of the cache", lambda: str(q.device))
    checks._rank(require, "q", q, 4)
    M, H = q.size(1), q.size(2)
    shape = (cache.batch, M, H, cache.head_dim)
    checks._shape(require, "q", q, shape, "[B, M, H, D], B and D of the cache")
    grouped = H > 0 and H % cache.kv_heads == 0
    require(grouped, "q", lambda: f"H a positive multiple of {cache.kv_heads} (Hkv)", lambda: f"{H}")
    if scale is not None:
        checks._number(require, "scale", scale, " or None")
        require(math.isfinite(scale), "scale", lambda: "a finite value or None", lambda: f"{scale}")
    checks.check_positive(require, "softcap", softcap, optional=True)
    if window is not None:
        given: object = window
        is_count = isinstance(given, int) and not isinstance(given, bool)
        require(is_count, "window", lambda: "an int or None", lambda: type(given).__name__, TypeError)
        require(window >= 1, "window", lambda: "a value >= 1 or None", lambda: f"{window}")
    if tree is not None:
        _check_tree(require, q, tree)
    links = () if tree is None else (tree.ancestor_words(), tree.depths(), tree.counts)
    out, lse = call_operator(
        q if q.stride(-1) == 1 else q.contiguous(),
        *cache.layer(layer).operands(),
        *links,
        scale=cache.head_dim**-0.5 if scale is None else scale,
        softcap=softcap,
        window=window,
        k_axis=cache.k_axis,
        v_axis=cache.v_axis,
        rotate=cache.rotate,
        return_lse=return_lse,
    )
    return (out, lse) if return_lse else out


def _check_tree(require: checks.Require, q: Tensor, tree: TokenTree) -> None:
    """One node a query, on the device of q."""
    given: object = tree
    known = hasattr(given, "ancestor_words")
    require(known, "tree", lambda: "a TokenTree or None", lambda: type(given).__name__, TypeError)
    require(tree.device == q.device, "tree", lambda: f"device {q.device} of q", lambda: str(tree.device))
    expected, got = [q.size(0), q.size(1)], [tree.batch, tree.num_nodes]
    require(expected == got, "tree", lambda: f"{expected} trees and nodes ([B, M] of q)", lambda: f"{got}")


def call_operator(*operands: Any, **options: Any) -> tuple[Tensor, Tensor]:
    """Calls the operator; what only its kernel can find wrong with the values becomes a ValueError."""
    try:
        return torch.ops.tokcore.decode_attention(*operands, **options)  # type: ignore[no-any-return]
    except RuntimeError as error:
        raise checks.value_error("decode_attention", error) from None
