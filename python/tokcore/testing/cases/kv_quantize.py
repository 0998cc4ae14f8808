"""Case table of ``kv_quantize``."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.reference import kv_quantize as meaning
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, Variant

# leading, N, D
SHAPES = (((2, 3), 64, 64), ((), 7, 128), ((1, 2), 128, 96), ((3,), 33, 8), ((2,), 16, 256), ((1,), 1, 32))
OPTIONS: dict[str, dict[str, Any]] = {
    "symmetric": {"symmetric": True},
    "channel-scale": {"channel_scale": True},
    "rotate": {"rotate": True},
    "grouped": {"grouped": True},
}


def _cases() -> tuple[Case, ...]:
    cases: dict[str, Case] = {}
    for index, (dtype, short) in enumerate(DTYPES.items()):
        plans = itertools.product((8, 4, 2), ("token", "channel"), range(len(OPTIONS) + 2))
        for n, (bits, axis, size) in enumerate(plans):
            names = list(OPTIONS)[size - 1 : size] if 0 < size <= len(OPTIONS) else list(OPTIONS) if size else []
            leading, N, D = SHAPES[(n + index) % len(SHAPES)]
            chosen = {key: value for name in names for key, value in OPTIONS[name].items()}
            if chosen.get("rotate") and D & (D - 1):
                D = 64
            label = ",".join([f"N={N},D={D},int{bits},{axis}", short, *names])
            parameters = {"leading": leading, "N": N, "D": D, "bits": bits, "axis": axis, "dtype": dtype, **chosen}
            cases[label] = Case(label, parameters, frozenset({"verify", "quick"}))
    for bits in (8, 4):
        label = f"N=8192,D=128,int{bits},token,bf16"
        parameters = {"leading": (8,), "N": 8192, "D": 128, "bits": bits, "axis": "token", "dtype": torch.bfloat16}
        cases[label] = Case(label, parameters, frozenset({"bench", "bench-cuda"}))
    return tuple(cases.values())


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """x with outlier channels and an offset, and the options by argument name."""
    p = case.parameters
    generator = torch.Generator().manual_seed(seed)
    N, D = p["N"], p["D"]
    x = torch.randn(*p["leading"], N, D, generator=generator)
    x[..., D // 3] *= 20.0
    x[..., D // 5] += 7.0
    if N > 2:
        x[..., 1, :] = 3.25  # a constant token
    x[..., D - 1] = -1.5  # a constant channel
    inputs: Inputs = {"x": x.to(p["dtype"]).to(device), "bits": p["bits"], "axis": p["axis"]}
    extent = D if p["axis"] == "token" else N
    inputs["group"] = extent // 2 if p.get("grouped") and extent % 2 == 0 else extent
    inputs |= {name: p[name] for name in ("symmetric", "rotate") if name in p}
    if p.get("channel_scale"):
        heads = p["leading"][-1:]
        inputs["channel_scale"] = (0.5 + torch.rand(*heads, D, generator=generator)).to(device)
    return inputs


def run(inputs: Inputs) -> Outputs:
    """tokcore: codes, scales and what comes back."""
    q = tokcore.kv_quantize(**inputs)
    outputs = {"packed": q.packed, "scale_bits": q.scale.view(torch.int16), "x": q.dequantize(torch.float32)}
    return outputs if q.zero is None else {**outputs, "zero_bits": q.zero.view(torch.int16)}


def _meaning(inputs: Inputs, dtype: torch.dtype) -> Outputs:
    x, bits, axis, group = (inputs[name] for name in ("x", "bits", "axis", "group"))
    channel_scale = inputs.get("channel_scale")
    if channel_scale is not None and channel_scale.dim() == 2:
        channel_scale = channel_scale.unsqueeze(-2)  # over tokens
    rotates = inputs.get("rotate", False)
    codes, scale, zero = meaning.quantize(x, bits, axis, group, inputs.get("symmetric", False), channel_scale, rotates)
    back = meaning.dequantize(codes, scale, zero, bits, axis, group, channel_scale, rotates, dtype)
    outputs = {"packed": meaning.pack_rows(codes, bits), "scale_bits": scale.view(torch.int16), "x": back}
    return outputs if zero is None else {**outputs, "zero_bits": zero.view(torch.int16)}


def reference(inputs: Inputs) -> Outputs:
    """The codes of the fp32 rules, read in fp64."""
    return _meaning(inputs, torch.float64)


def composition(inputs: Inputs) -> Outputs:
    """The same in fp32."""
    return _meaning(inputs, torch.float32)


def _bytes(case: Case) -> float:
    p = case.parameters
    items = 1
    for size in p["leading"]:
        items *= size
    return float(items * p["N"] * p["D"] * (p["dtype"].itemsize + p["bits"] / 8))


def _variant(name: str, call: Callable[[Inputs], Any], peer: bool) -> Variant:
    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        return lambda: call(inputs)

    return Variant(name, "forward", prepare, peer=peer, bytes=_bytes)


def _eager(inputs: Inputs) -> dict[str, Tensor]:
    """Scale and round in the tensor's dtype, a byte a code: what people write."""
    x, levels = inputs["x"], 2 ** inputs["bits"] - 1
    low, high = x.aminmax(dim=-1, keepdim=True)
    scale = (high - low).clamp(min=1e-6) / levels
    return {"codes": ((x - low) / scale).round().clamp(0, levels).to(torch.uint8), "scale": scale, "zero": low}


_MAIN = "N=8192,D=128,int8,token,bf16"

TABLE = OpTable(
    op="kv_quantize",
    cases=_cases(),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    variants=(
        _variant("eager PyTorch", _eager, peer=True),
        _variant("tokcore", lambda inputs: tokcore.kv_quantize(**inputs), peer=False),
    ),
    goals=(Goal(_MAIN, "forward", "tokcore", "eager PyTorch", 2.0),),
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in ("float32, bfloat16, float16", "bits 8, 4, 2", "axis", "group", "symmetric", "channel_scale")
    }
    | {
        "rotate": {"cpu": "D a power of two", "cuda": "D a power of two"},
        "D": {"cpu": "any multiple of 8 / bits", "cuda": "up to 4096"},
    },
)
