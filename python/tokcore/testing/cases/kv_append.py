"""Case table of ``kv_append``: every byte of the pages, every slot of window and sinks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.quantized_kv_cache import Tier
from tokcore.reference import kv_cache as layout
from tokcore.reference.kv_quantize import quantize
from tokcore.testing.cases import _flashinfer
from tokcore.testing.cases._decode_bench import CACHES, INT8, make_bench_cache
from tokcore.testing.cases._kv_cache import eager_codes, fill, keys_and_values, make_cache, plans
from tokcore.testing.cases._sources import H200
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, TimeGoal, Variant


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Keys, values, lengths and how the cache is made."""
    return {**keys_and_values(case, device, seed), "parameters": dict(case.parameters)}


def run(inputs: Inputs) -> Outputs:
    """What the cache holds, by sequence."""
    cache = make_cache(inputs["parameters"], inputs.get("scales"), str(inputs["k"].device))
    fill(cache, inputs)
    state = cache.layer(0)
    outputs: Outputs = {"lengths": state.lengths.clone(), "window_starts": state.window_starts.clone()}
    for b in range(cache.batch):
        length, start = int(state.lengths[b]), int(state.window_starts[b])
        sinks, recent = torch.arange(min(length, cache.sinks)), torch.arange(start, max(start, length))
        for kind in "kv":
            window, sink = getattr(state, f"window_{kind}"), getattr(state, f"sink_{kind}")
            outputs[f"{kind} sinks {b}"] = sink[b][:, sinks]
            outputs[f"{kind} window {b}"] = window[b][:, recent % window.size(2)]
        for name in ("high", "low"):
            tier = getattr(state, name)
            if tier is None:
                continue
            used = tier.page_table[b, : int(tier.page_counts[b])].long()
            for part in ("k_pages", "v_pages", "k_scale", "k_zero", "v_scale", "v_zero"):
                tensor = getattr(tier, part)
                if tensor.dim() > 1 and tensor.numel() > 0:
                    outputs[f"{name} {part} {b}"] = _bits(tensor[used])
            if tier.positions.numel() > 0:
                outputs[f"{name} positions {b}"] = tier.positions[used].to(torch.int32)
    return outputs


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x


def reference(inputs: Inputs) -> Outputs:
    """The same from the rules alone."""
    cache = make_cache(inputs["parameters"], inputs.get("scales"), str(inputs["k"].device))
    empty = cache.layer(0)
    page, residual, S = cache.page_size, cache.residual, cache.sinks
    lengths = inputs["lengths"].to(torch.int32)
    pages = ((lengths - S - residual).clamp(min=0) // page).to(torch.int32)
    outputs: Outputs = {"lengths": lengths, "window_starts": S + pages * page}
    for b in range(cache.batch):
        length, start = int(lengths[b]), int(outputs["window_starts"][b])
        for kind in "kv":
            x = inputs[kind][b].transpose(0, 1)  # [Hkv, L, D]
            outputs[f"{kind} sinks {b}"] = x[:, : min(length, S)]
            outputs[f"{kind} window {b}"] = x[:, start : max(start, length)]
        done = 0
        for name in ("high", "low"):
            tier = getattr(empty, name)
            if tier is None:
                continue
            count = min(int(pages[b]) - done, tier.page_table.size(1))
            positions = S + torch.arange(done * page, (done + count) * page)
            done += count
            for index, kind in enumerate("kv"):
                x = inputs[kind][b].transpose(0, 1)[:, positions].reshape(cache.kv_heads, count, page, cache.head_dim)
                scales = inputs["scales"][index] if "scales" in inputs else None
                outputs |= _pages(cache, tier, name, kind, b, x.transpose(0, 1), scales)
            if tier.positions.numel() > 0:
                listed = positions.reshape(count, 1, page).expand(-1, cache.kv_heads, -1)
                outputs[f"{name} positions {b}"] = listed.to(torch.int32)
    return outputs


def _pages(
    cache: tokcore.QuantizedKVCache, tier: Tier, name: str, kind: str, b: int, x: Tensor, channel_scale: Tensor | None
) -> Outputs:
    """Packed x [count, Hkv, page_size, D]."""
    pages, scale = getattr(tier, f"{kind}_pages"), getattr(tier, f"{kind}_scale")
    if pages.numel() == 0:
        return {}
    if pages.dtype != torch.uint8:
        return {f"{name} {kind}_pages {b}": _bits(x.contiguous())}
    D, page_size = x.size(-1), x.size(-2)
    bits = pages.size(-1) * 8 // D
    axis = cache.k_axis if kind == "k" else cache.v_axis
    group = D // scale.size(2) if axis == "token" else page_size // scale.size(2)
    symmetric = getattr(tier, f"{kind}_zero").numel() == 0
    over_tokens = None if channel_scale is None else channel_scale.unsqueeze(-2)
    rotates = cache.rotate
    codes, scales, zeros = quantize(x.float(), bits, axis, group, symmetric, over_tokens, rotates)
    pack = layout.pack_key_pages if kind == "k" else layout.pack_value_pages
    found = {f"{name} {kind}_pages {b}": pack(codes, bits)}
    for part, value in (("scale", scales), ("zero", zeros)):
        if value is not None:
            by_group = value.transpose(-1, -2) if axis == "token" else value
            found[f"{name} {kind}_{part} {b}"] = _bits(by_group.contiguous())
    return found


APPEND = "append"
INDEX_COPY, OURS = "index_copy_ into bf16 tensors", tuple(CACHES)
EAGER = "eager 8-bit codes, index_copy_"
_ROOM = 4096  # tokens: more than are appended in one run


def _bench_cases() -> tuple[Case, ...]:
    """One token of every sequence after 4k and 32k others."""
    return tuple(
        Case(
            _bench_name(B, L),
            {"B": B, "L": L, "Hkv": 8, "D": 128, "dtype": torch.bfloat16},
            frozenset({"bench", "bench-cuda"} if L == 4096 else {"large", "bench-cuda"}),
        )
        for L in (4096, 32768)
        for B in (1, 8)
    )


def _bench_name(B: int, L: int) -> str:
    return f"append,B={B},Hkv=8,D=128,L={L},bf16"


def _is_timed(case: Case) -> bool:
    return case.timed


def _bytes(case: Case) -> float:
    """Read and written once."""
    p = case.parameters
    return float(4 * p["B"] * p["Hkv"] * p["D"] * p["dtype"].itemsize)


def _prepare(name: str) -> Callable[[Case, Inputs], Callable[[], Any]]:
    def prepare(case: Case, inputs: Inputs) -> Callable[[], Any]:
        """Slots move on by themselves, on the device: a replayed graph appends token after token."""
        k, v = inputs["k"], inputs["v"]
        cache = make_bench_cache(case, name, _ROOM, k.device)
        cache.append(0, k, v)
        new_k, new_v = k[:, -1].contiguous(), v[:, -1].contiguous()
        slots = torch.arange(k.size(0), device=k.device) * cache.capacity + k.size(1)

        def timed() -> None:
            tokcore.kv_append(cache, 0, new_k, new_v, slots)
            slots.add_(1)

        return timed

    return prepare


def _prepare_index_copy(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """What a cache without pages and codes does."""
    caches = [inputs[name].transpose(1, 2).contiguous() for name in "kv"]
    new = [inputs[name][:, -1].unsqueeze(2).contiguous() for name in "kv"]
    position = torch.zeros(1, dtype=torch.int64, device=caches[0].device)

    def timed() -> None:
        for target, value in zip(caches, new, strict=True):
            target.index_copy_(2, position, value)
        position.add_(1)

    return timed


def _prepare_eager(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """What is written by hand for codes by token: scale, round, and put codes, scales and zeros where they belong."""
    caches = [eager_codes(inputs[name].transpose(1, 2), 255) for name in "kv"]
    new = [inputs[name][:, -1].unsqueeze(2).contiguous() for name in "kv"]
    position = torch.zeros(1, dtype=torch.int64, device=new[0].device)

    def timed() -> None:
        for cache, value in zip(caches, new, strict=True):
            for target, part in zip(cache, eager_codes(value, 255), strict=True):
                target.index_copy_(2, position, part)
        position.add_(1)

    return timed


def _variants() -> tuple[Variant, ...]:
    fields: dict[str, Any] = {"bytes": _bytes, "applies": _is_timed}
    flashinfer = {**fields, "unavailable": _flashinfer.unavailable, "backends": ("cuda",)}
    return (
        Variant(INDEX_COPY, APPEND, _prepare_index_copy, **fields),
        Variant(EAGER, APPEND, _prepare_eager, **fields),
        Variant("FlashInfer append_paged_kv_cache", APPEND, _flashinfer.append, **flashinfer),
        *(Variant(name, APPEND, _prepare(name), peer=False, **fields) for name in OURS),
    )


TABLE = OpTable(
    op="kv_append",
    cases=(
        *(Case(name, parameters, frozenset({"verify", "quick"})) for name, parameters in plans({})),
        *_bench_cases(),
    ),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=reference,  # nothing is rounded: the rules say every bit
    reference_bytes=lambda case: math.inf if case.timed else 0.0,
    variants=_variants(),
    goals=(
        Goal(_bench_name(1, 4096), APPEND, INT8, EAGER, 2.0),
        *(
            TimeGoal(_bench_name(B, L), APPEND, name, H200, 5e-6)
            for L in (4096, 32768)
            for B in (1, 8)
            for name in OURS
        ),
    ),
    waits=True,
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in ("float32, bfloat16, float16", "ragged sequences", "residual window, sinks", "two tiers")
    },
)
