"""``kv_compact``: of the trees at the ends of a cache's sequences, the accepted paths stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv
from tokcore.ops._kv_cache_checks import RECENT_NAMES, TIER_NAMES, check_cache

if TYPE_CHECKING:
    from tokcore.quantized_kv_cache import QuantizedKVCache
    from tokcore.token_tree import TokenTree
    from tokcore.verdict import Verdict


def _first_layer(require: checks.Require, name: str, value: Tensor, layers: int) -> Tensor:
    stacked = value.dim() >= 1 and value.size(0) == layers and layers >= 1
    least = layers if layers >= 1 else 1
    require(stacked, name, lambda: f"a leading dimension of {least} layers", lambda: checks.sizes(value.shape))
    strides = value.stride()
    require(value.is_contiguous(), name, lambda: "a contiguous tensor", lambda: f"strides {checks.sizes(strides)}")
    return value.select(0, 0)


def _first_layers(require: checks.Require, names: Sequence[str], values: Sequence[Tensor], layers: int) -> list[Tensor]:
    return [
        _first_layer(require, names[i] if i < len(names) else names[0], value, layers) for i, value in enumerate(values)
    ]


@torch.library.register_fake("tokcore::kv_compact")  # type: ignore[untyped-decorator]
def _compact_fake(
    accepted_nodes: Tensor,
    accepted_counts: Tensor,
    tree_parents: Tensor,
    tree_counts: Tensor,
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
    require = checks.fake_require("kv_compact")
    checks._rank(require, "lengths", lengths, 2)
    layers = lengths.size(0)
    first_lengths = _first_layer(require, "lengths", lengths, layers)
    first_starts = _first_layer(require, "window_starts", window_starts, layers)
    first_recent = _first_layers(require, RECENT_NAMES, recent, layers)
    first_high, first_low = (
        _first_layers(require, [f"{prefix}.{name}" for name in TIER_NAMES], tier, layers)
        for prefix, tier in (("high", high), ("low", low))
    )
    k_scale, v_scale = (
        None if scale is None else _first_layer(require, name, scale, layers)
        for name, scale in (("k_channel_scale", k_channel_scale), ("v_channel_scale", v_channel_scale))
    )
    parts = (first_lengths, first_starts, first_recent, first_high, first_low, k_scale, v_scale)
    check_cache(require, *parts, k_axis, v_axis, rotate)
    window = first_recent[0]
    named = {
        "accepted_nodes": accepted_nodes,
        "accepted_counts": accepted_counts,
        "tree_parents": tree_parents,
        "tree_counts": tree_counts,
    }
    for name, value in named.items():
        checks._dtype(require, name, value, (torch.int32,))
    for name, value in named.items():
        kv.check_same_device(require, name, value, window, RECENT_NAMES[0])
    B = window.size(0)
    checks._rank(require, "accepted_nodes", accepted_nodes, 2)
    checks._rank(require, "tree_parents", tree_parents, 2)
    shape = (B, accepted_nodes.size(1))
    checks._shape(require, "accepted_nodes", accepted_nodes, shape, "[B, K], B of recent.window_k")
    checks._shape(require, "accepted_counts", accepted_counts, (B,), "B of recent.window_k")
    shape = (B, tree_parents.size(1))
    checks._shape(require, "tree_parents", tree_parents, shape, "[B, N], B of recent.window_k")
    checks._shape(require, "tree_counts", tree_counts, (B,), "B of recent.window_k")


def kv_compact(cache: QuantizedKVCache, verdict: Verdict, tree: TokenTree) -> None:
    """Keeps the accepted paths of the trees whose nodes stand last in a cache, in all layers at once.

    The last ``tree.counts[b]`` tokens of sequence b are the nodes in their order. Accepted node i moves to place
    prefix + i, the others are dropped, and the sequence has prefix + accepted_counts[b] tokens. A request without
    accepted nodes loses its whole tree.

    Nodes in the sinks and the window (all of them where ``cache.residual`` is at least their number) move byte for
    byte. Where nodes have gone into pages already, they are moved within and between pages:

    - a token that stays in its tier keeps codes and scales bit for bit, if scales are by token;
    - one that enters a page from the window, or changes tier, is quantized from the numbers it stands for, and so are
      pages whose tokens share scales by channel;
    - the tokens of a page that is no longer full return to the window as the numbers they stand for.

    Args:
        cache: changed in place.
        verdict: what a verification of ``tree`` found.
        tree: the tree that was appended to every layer.

    Raises:
        TypeError: a wrong type. ValueError: a verdict that is no path from the root of the tree (the text names node
            and sequence), more nodes than tokens, nodes in pages that were sorted by :func:`tokcore.kv_retier` or are
            shared by :meth:`QuantizedKVCache.fork` since, or dropped ones (a cache without tiers and with a residual
            below their number). Nothing is written then. On CUDA wrong values are not raised for, which would wait for
            the GPU, but refused: nothing changes in any layer or sequence.

    Reads and writes 2·layers·Hkv·D numbers an accepted node that moves. Bitwise repeatable whatever the thread count.
    """
    require = checks.wrapper_require("kv_compact")
    for name, given, attribute in (("verdict", verdict, "accepted_nodes"), ("tree", tree, "ancestor_words")):
        kind = name.capitalize() if name == "verdict" else "TokenTree"
        known = hasattr(given, attribute)
        require(known, name, lambda kind=kind: f"a {kind}", lambda given=given: type(given).__name__, TypeError)  # type: ignore[misc]
    kv.check_device(require, "verdict", verdict.accepted_nodes)
    tensors = {"verdict": verdict.accepted_nodes, "tree": tree.parents}
    for name, value in tensors.items():
        device = value.device
        same = device == cache.device
        require(same, name, lambda: f"device {cache.device} of the cache", lambda device=device: str(device))  # type: ignore[misc]
        requests = value.size(0)
        require(
            requests == cache.batch,
            name,
            lambda: f"{cache.batch} requests (sequences of the cache)",
            lambda requests=requests: f"{requests}",  # type: ignore[misc]
        )
    try:
        torch.ops.tokcore.kv_compact(
            verdict.accepted_nodes,
            verdict.accepted_counts,
            tree.parents,
            tree.counts,
            *cache.stacked_operands(),
            k_axis=cache.k_axis,
            v_axis=cache.v_axis,
            rotate=cache.rotate,
        )
    except RuntimeError as error:
        raise checks.value_error("kv_compact", error) from None
