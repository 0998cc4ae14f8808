"""Case table of ``kv_append``: every byte of the pages, every slot of window and sinks."""

from __future__ import annotations

import torch
from torch import Tensor

import tokcore
from tokcore.quantized_kv_cache import Tier
from tokcore.reference import kv_cache as layout
from tokcore.reference.kv_quantize import quantize
from tokcore.testing.cases._kv_cache import fill, keys_and_values, make_cache, plans
from tokcore.testing.table import Case, Inputs, OpTable, Outputs


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


TABLE = OpTable(
    op="kv_append",
    cases=tuple(Case(name, parameters, frozenset({"verify", "quick"})) for name, parameters in plans({})),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=reference,  # nothing is rounded: the rules say every bit
    waits=True,
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in ("float32, bfloat16, float16", "ragged sequences", "residual window, sinks", "two tiers")
    },
)
