"""The operators of the KV cache on their CUDA kernels, executed on the CPU: functions with the operators' signatures.

Every array of a call lies between inaccessible pages, what is not an input is poisoned, and what an operator changes in
place is copied back afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from simt_support import guarded, guarded_empty, simt
from torch import Tensor

_TIER = ("k_pages", "v_pages", "k_scale", "k_zero", "v_scale", "v_zero", "page_table", "page_counts", "positions")
_RECENT = ("window_k", "window_v", "sink_k", "sink_v")


class Arrays:
    """Keeps the arrays of a call alive, and writes those that it changed back."""

    placement = "end"  # against which guard page arrays lie

    def __init__(self) -> None:
        self._kept: list[Tensor] = []
        self._changed: list[tuple[Tensor, Tensor]] = []

    def give(self, tensor: Tensor, name: str) -> int:
        """The address of a read-only copy."""
        return self._keep(guarded(tensor.contiguous(), name, self.placement))

    def rows(self, tensor: Tensor, name: str) -> int:
        """The address of a copy with the same strides."""
        if tensor.numel() == 0:
            return 0
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        return self.give(tensor.as_strided((span,), (1,)), name)

    def change(self, tensor: Tensor, name: str) -> int:
        """The address of a copy that is copied back by :meth:`finish`."""
        array = guarded_empty(tuple(tensor.shape), tensor.dtype, name, self.placement)
        array.copy_(tensor)
        self._changed.append((tensor, array))
        return self._keep(array)

    def take(self, shape: Sequence[int], dtype: torch.dtype, name: str) -> tuple[Tensor, int]:
        """A poisoned output."""
        array = guarded_empty(tuple(shape), dtype, name, self.placement)
        return array, self._keep(array)

    def workspace(self, size: int) -> int:
        """Poisoned bytes."""
        return self.take((max(size, 1),), torch.uint8, "workspace")[1]

    def finish(self) -> None:
        """Copies what was changed back."""
        for original, array in self._changed:
            original.copy_(array)

    def _keep(self, array: Tensor) -> int:
        self._kept.append(array)
        return array.data_ptr()


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def scheme(bits: int, by_token: bool, group: int, symmetric: bool) -> dict[str, Any]:
    return {"bits": bits, "by_token": by_token, "group": group, "symmetric": symmetric}


# ---- quantization ----------------------------------------------------------------------------------------------------


def _codes(
    arrays: Arrays,
    shape: tuple[int, int, int],
    bits: int,
    axis: str,
    group: int,
    symmetric: bool,
    channel_scale: Tensor | None,
    rotate: bool,
) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "scheme": scheme(bits, axis == "token", group, symmetric),
        "num_items": shape[0],
        "num_tokens": shape[1],
        "head_dim": shape[2],
        "rotates": rotate,
        "num_channel_scales": 1 if channel_scale is None else channel_scale.size(0),
    }
    if channel_scale is not None:
        fields["channel_scale"] = arrays.give(channel_scale, "channel_scale")
    return fields


def kv_quantize(
    x: Tensor,
    bits: int,
    axis: str,
    group: int,
    symmetric: bool = False,
    channel_scale: Tensor | None = None,
    *,
    rotate: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """``tokcore::kv_quantize``."""
    M, N, D = x.shape
    arrays = Arrays()
    scales = (M, N, D // group) if axis == "token" else (M, N // group, D)
    packed, packed_at = arrays.take((M, N, D * bits // 8), torch.uint8, "packed")
    scale, scale_at = arrays.take(scales, torch.bfloat16, "scale")
    zero, zero_at = arrays.take((0,) if symmetric else scales, torch.bfloat16, "zero")
    if x.numel() > 0:
        fields = _codes(arrays, (M, N, D), bits, axis, group, symmetric, channel_scale, rotate)
        fields |= {"dtype": dtype_name(x.dtype), "x": arrays.rows(x, "x")}
        fields |= {"stride_item": x.stride(0), "stride_token": x.stride(1), "packed": packed_at, "scale": scale_at}
        simt.kv_quantize(fields if symmetric else {**fields, "zero": zero_at})
    return packed.clone(), scale.clone(), zero.clone()


def kv_dequantize(
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
    """``tokcore::kv_dequantize``."""
    M, N, D = packed.size(0), packed.size(1), packed.size(2) * 8 // bits
    arrays = Arrays()
    x, x_at = arrays.take((M, N, D), dtype, "x")
    if x.numel() > 0:
        fields = _codes(arrays, (M, N, D), bits, axis, group, symmetric, channel_scale, rotate)
        fields |= {"dtype": dtype_name(dtype), "x": x_at, "packed": arrays.give(packed, "packed")}
        fields["scale"] = arrays.give(scale, "scale")
        simt.kv_dequantize(fields if symmetric else {**fields, "zero": arrays.give(zero, "zero")})
    return x.clone()


# ---- caches ----------------------------------------------------------------------------------------------------------


def _pages(
    data: Tensor, scale: Tensor, zero: Tensor, D: int, axis: str, address: Callable[[Tensor, str], int], name: str
) -> dict[str, Any]:
    page_size, row = data.shape[2:]
    coded = data.dtype == torch.uint8
    fields: dict[str, Any] = {
        "coded": coded,
        "data": address(data, f"{name}_pages"),
        "head_bytes": page_size * row * data.element_size(),
    }
    if coded:
        extent = D if axis == "token" else page_size
        group = extent // scale.size(2)
        fields["scheme"] = scheme(row * 8 // D, axis == "token", group, zero.numel() == 0)
        fields["head_scales"] = page_size * D // group
        fields["scale"] = address(scale, f"{name}_scale")
        if zero.numel() > 0:
            fields["zero"] = address(zero, f"{name}_zero")
    return fields


def cache_fields(
    arrays: Arrays,
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
    changes: Sequence[str] = (),
) -> dict[str, Any]:
    """``KvCacheParams``; ``changes`` names what the kernel may write: "state", "recent", "tiers"."""
    B, Hkv, W, D = recent[0].shape
    state = arrays.change if "state" in changes else arrays.give
    fields: dict[str, Any] = {
        "dtype": dtype_name(recent[0].dtype),
        "num_sequences": B,
        "num_heads": Hkv,
        "head_dim": D,
        "window_size": W,
        "num_sinks": recent[2].size(2),
        "lengths": state(lengths, "lengths"),
        "window_starts": state(window_starts, "window_starts"),
        "rotates": rotate,
    }
    place = arrays.change if "recent" in changes else arrays.give
    fields |= {name: place(tensor, name) for name, tensor in zip(_RECENT, recent, strict=True)}
    for name, scale in (("k_channel_scale", k_channel_scale), ("v_channel_scale", v_channel_scale)):
        if scale is not None:
            fields[name] = arrays.give(scale, name)
    for name, tier in (("high", high), ("low", low)):
        if not tier:
            continue
        parts = dict(zip(_TIER, tier, strict=True))
        address = arrays.change if "tiers" in changes else arrays.give
        counts = arrays.change if "state" in changes else arrays.give
        fields["page_size"] = parts["k_pages"].size(2)
        made: dict[str, Any] = {
            "keys": _pages(parts["k_pages"], parts["k_scale"], parts["k_zero"], D, k_axis, address, f"{name}.k"),
            "values": _pages(parts["v_pages"], parts["v_scale"], parts["v_zero"], D, v_axis, address, f"{name}.v"),
            "num_pages": parts["k_pages"].size(0),
            "table_width": parts["page_table"].size(1),
            "page_table": arrays.give(parts["page_table"], f"{name}.page_table"),
            "page_counts": counts(parts["page_counts"], f"{name}.page_counts"),
            "wide_positions": parts["positions"].dtype == torch.int32,
        }
        if parts["positions"].numel() > 0:
            made["positions"] = address(parts["positions"], f"{name}.positions")
        fields[name] = made
    return fields


def kv_append(
    k: Tensor,
    v: Tensor,
    slot_mapping: Tensor,
    lengths: Tensor,
    window_starts: Tensor,
    recent: Sequence[Tensor],
    high: Sequence[Tensor],
    low: Sequence[Tensor],
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
    """``tokcore::kv_append``."""
    if k.size(0) == 0:
        return
    arrays = Arrays()
    tensors = (lengths, window_starts, recent, high, low, k_channel_scale, v_channel_scale)
    cache = cache_fields(arrays, *tensors, k_axis, v_axis, rotate, ("state", "recent", "tiers"))
    fields: dict[str, Any] = {
        "cache": {**cache, "page_size": page_size},
        "k": arrays.rows(k, "k"),
        "v": arrays.rows(v, "v"),
        "stride_k_token": k.stride(0),
        "stride_k_head": k.stride(1),
        "stride_v_token": v.stride(0),
        "stride_v_head": v.stride(1),
        "slots": arrays.give(slot_mapping, "slot_mapping"),
        "num_tokens": k.size(0),
        "capacity": capacity,
        "residual": residual,
    }
    params = simt.KvAppend(fields)
    simt.run(params, arrays.workspace(simt.workspace(params)))
    arrays.finish()


def kv_retier(
    scores: Tensor,
    high_pages: Tensor,
    lengths: Tensor,
    window_starts: Tensor,
    recent: Sequence[Tensor],
    high: Sequence[Tensor],
    low: Sequence[Tensor],
    k_channel_scale: Tensor | None = None,
    v_channel_scale: Tensor | None = None,
    *,
    k_axis: str = "token",
    v_axis: str = "token",
    rotate: bool = False,
) -> None:
    """``tokcore::kv_retier``."""
    if scores.numel() == 0:
        return
    arrays = Arrays()
    tensors = (lengths, window_starts, recent, high, low, k_channel_scale, v_channel_scale)
    fields: dict[str, Any] = {
        "cache": cache_fields(arrays, *tensors, k_axis, v_axis, rotate, ("state", "tiers")),
        "scores": arrays.rows(scores, "scores"),
        "stride_scores_sequence": scores.stride(0),
        "stride_scores_head": scores.stride(1),
        "num_positions": scores.size(2),
        "high_pages": arrays.give(high_pages, "high_pages"),
    }
    params = simt.KvRetier(fields)
    simt.run(params, arrays.workspace(simt.workspace(params)))
    arrays.finish()


class _Stacked:
    """Arrays of all layers for what knows their first layers alone."""

    def __init__(self, arrays: Arrays, stacked: Sequence[Tensor]) -> None:
        self.arrays = arrays
        self.first = [tensor[0] for tensor in stacked]
        self._whole = {id(first): whole for first, whole in zip(self.first, stacked, strict=True)}

    def give(self, tensor: Tensor, name: str) -> int:
        return self.arrays.give(self._whole[id(tensor)], name)

    def change(self, tensor: Tensor, name: str) -> int:
        return self.arrays.change(self._whole[id(tensor)], name)


def kv_compact(
    accepted_nodes: Tensor,
    accepted_counts: Tensor,
    tree_parents: Tensor,
    tree_counts: Tensor,
    lengths: Tensor,
    window_starts: Tensor,
    recent: Sequence[Tensor],
    high: Sequence[Tensor],
    low: Sequence[Tensor],
    k_channel_scale: Tensor | None = None,
    v_channel_scale: Tensor | None = None,
    *,
    k_axis: str = "token",
    v_axis: str = "token",
    rotate: bool = False,
) -> None:
    """``tokcore::kv_compact``."""
    arrays = Arrays()
    scales = [scale for scale in (k_channel_scale, v_channel_scale) if scale is not None]
    stacked = _Stacked(arrays, [lengths, window_starts, *recent, *high, *low, *scales])
    first = iter(stacked.first)
    parts: list[Any] = [next(first), next(first)]
    parts += [[next(first) for _ in group] for group in (recent, high, low)]
    parts += [None if scale is None else next(first) for scale in (k_channel_scale, v_channel_scale)]
    changes = ("state", "recent", "tiers")
    cache = cache_fields(stacked, *parts, k_axis, v_axis, rotate, changes)  # type: ignore[arg-type]
    fields: dict[str, Any] = {
        "cache": cache,
        "num_layers": lengths.size(0),
        "nodes": arrays.give(accepted_nodes, "accepted_nodes"),
        "accepted": arrays.give(accepted_counts, "accepted_counts"),
        "parents": arrays.give(tree_parents, "tree_parents"),
        "counts": arrays.give(tree_counts, "tree_counts"),
        "most_accepted": accepted_nodes.size(1),
        "most_nodes": tree_parents.size(1),
    }
    params = simt.KvCompact(fields)
    simt.run(params, arrays.workspace(simt.workspace(params)))
    arrays.finish()


def decode_attention(
    q: Tensor,
    lengths: Tensor,
    window_starts: Tensor,
    recent: Sequence[Tensor],
    high: Sequence[Tensor],
    low: Sequence[Tensor],
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
    """``tokcore::decode_attention``."""
    B, M, H, D = q.shape
    arrays = Arrays()
    out, out_at = arrays.take((B, M, H, D), q.dtype, "out")
    lse, lse_at = arrays.take((B, H, M) if return_lse else (0,), torch.float32, "lse")
    if out.numel() > 0:
        tensors = (lengths, window_starts, recent, high, low, k_channel_scale, v_channel_scale)
        fields: dict[str, Any] = {
            "cache": cache_fields(arrays, *tensors, k_axis, v_axis, rotate),
            "q": arrays.rows(q, "q"),
            "stride_q_sequence": q.stride(0),
            "stride_q_query": q.stride(1),
            "stride_q_head": q.stride(2),
            "num_queries": M,
            "num_q_heads": H,
            "scale": scale,
            "softcap": softcap or 0.0,
            "window": window or 0,
            "out": out_at,
        }
        trees = {"tree_ancestors": tree_ancestors, "tree_depths": tree_depths, "tree_counts": tree_counts}
        fields |= {name: arrays.give(value, name) for name, value in trees.items() if value is not None}
        if tree_ancestors is not None:
            fields["tree_words"] = tree_ancestors.size(2)
        params = simt.DecodeAttention({**fields, "lse": lse_at} if return_lse else fields)
        simt.run(params, arrays.workspace(simt.workspace(params)))
    return out.clone(), lse.clone()


def kv_saliency(
    q_probe: Tensor,
    k: Tensor,
    probe_positions: Tensor,
    lse: Tensor | None = None,
    *,
    scale: float,
    reduce: str = "normalized_sum",
    decay: float = 1.0,
    temperature: float = 1.0,
    gumbel_seed: int | None = None,
) -> Tensor:
    """``tokcore::kv_saliency``."""
    B, T, H, D = q_probe.shape
    N, Hkv = k.size(1), k.size(2)
    arrays = Arrays()
    scores, scores_at = arrays.take((B, Hkv, N), torch.float32, "scores")
    if scores.numel() == 0 or T == 0:
        return torch.zeros(B, Hkv, N)
    fields: dict[str, Any] = {
        "dtype": dtype_name(q_probe.dtype),
        "reduce": reduce,
        "q": arrays.rows(q_probe, "q_probe"),
        "k": arrays.rows(k, "k"),
        "positions": arrays.give(probe_positions, "probe_positions"),
        "num_sequences": B,
        "num_probes": T,
        "num_q_heads": H,
        "num_heads": Hkv,
        "num_tokens": N,
        "head_dim": D,
        "scale": scale,
        "temperature": temperature,
        "adds_noise": gumbel_seed is not None,
        "seed": gumbel_seed or 0,
        "decay": decay,
        "scores": scores_at,
    }
    for name, value, dims in (("q", q_probe, ("sequence", "probe", "head")), ("k", k, ("sequence", "token", "head"))):
        fields |= {f"stride_{name}_{dim}": value.stride(i) for i, dim in enumerate(dims)}
    if lse is not None:
        fields["lse"] = arrays.give(lse, "lse")
    params = simt.KvSaliency(fields)
    simt.run(params, arrays.workspace(simt.workspace(params)))
    return scores.clone()


OPERATORS: dict[str, Callable[..., Any]] = {
    "kv_quantize": kv_quantize,
    "kv_dequantize": kv_dequantize,
    "kv_append": kv_append,
    "kv_retier": kv_retier,
    "kv_compact": kv_compact,
    "decode_attention": decode_attention,
    "kv_saliency": kv_saliency,
}


@contextmanager
def in_place_of_the_cpu(*names: str) -> Iterator[None]:
    """The operators (all, or those named) run these functions for CPU tensors, and so do the public functions."""
    library = torch.library.Library("tokcore", "IMPL")
    try:
        for name in names or OPERATORS:
            library.impl(name, OPERATORS[name], "CPU", allow_override=True)
        yield
    finally:
        library._destroy()
