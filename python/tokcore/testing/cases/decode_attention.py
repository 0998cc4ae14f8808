"""Case table of ``decode_attention``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokcore
from tokcore.reference.decode_attention import decode_attention as reference_attention
from tokcore.reference.decode_attention import visible
from tokcore.reference.kv_cache import read_sequence
from tokcore.testing.cases._kv_cache import fill, keys_and_values, make_cache, plans
from tokcore.testing.cases._trees import random_parents
from tokcore.testing.table import Case, Goal, Inputs, MemoryGoal, OpTable, Outputs, Variant

OPTIONS: dict[str, dict[str, Any]] = {
    "M=3": {"M": 3},
    "M=8": {"M": 8},
    "softcap": {"softcap": 5.0},
    "window": {"window": 50},
    "M=8+window+softcap": {"M": 8, "window": 200, "softcap": 3.0},
    "scale": {"scale": 0.3},
}
# The queries as nodes of a tree; the first ones go through every kind of cache.
TREES: dict[str, dict[str, Any]] = {
    "tree N=5": {"M": 5, "tree": "random"},
    "tree N=16": {"M": 16, "tree": "wide"},
    "tree N=33+window": {"M": 33, "tree": "random", "window": 40},
    "tree N=64+softcap": {"M": 64, "tree": "star", "softcap": 5.0},
    "tree N=130": {"M": 130, "tree": "random"},
    "tree N=7+window+scale": {"M": 7, "tree": "chain", "window": 5, "scale": 0.3},
}
_DECODE = ("scale", "softcap", "window")
_SDPA, _DEQUANTIZE = "SDPA enable_gqa", "dequantize int8 + SDPA"


def _bench_cases() -> tuple[Case, ...]:
    plans = [(1, L, 8, 4, 128) for L in (1024, 4096, 16384, 32768, 131072)] + [(8, 4096, 8, 4, 128)]
    timed = (4096, 16384, 32768)
    return tuple(
        Case(
            f"B={B},H={Hkv * G},Hkv={Hkv},D={D},L={L},bf16",
            {"B": B, "L": L, "Hkv": Hkv, "G": G, "D": D, "dtype": torch.bfloat16},
            frozenset({"bench"} if L in timed and B == 1 else {"large"}),
        )
        for B, L, Hkv, G, D in plans
    )


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """q, and a cache that holds keys and values (bench cases: the keys and values themselves)."""
    p = case.parameters
    inputs = keys_and_values(case, device, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    q = torch.randn(p["B"], p.get("M", 1), p["Hkv"] * p["G"], p["D"], generator=generator)
    inputs["q"] = q.to(p["dtype"]).to(device)
    if "verify" in case.tags:
        cache = make_cache(p, inputs.pop("scales", None), device)
        fill(cache, inputs)
        options = {name: p[name] for name in _DECODE if name in p}
        if "tree" in p:
            parents, counts = random_parents(p["B"], p["M"], p["tree"], generator)
            counts = torch.minimum(counts, cache.lengths.cpu()).to(torch.int32)
            tokens = torch.zeros(parents.shape, dtype=torch.int64)
            options["tree"] = tokcore.TokenTree(parents.to(device), tokens.to(device), counts.to(device))
        return {"q": inputs["q"], "cache": cache, "options": options}
    return inputs


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    out, lse = tokcore.decode_attention(inputs["q"], inputs["cache"], 0, return_lse=True, **inputs["options"])
    return {"out": out, "lse": lse}


def reference(inputs: Inputs) -> Outputs:
    """fp64 over the dequantized cache; of a bench case, over the keys and values themselves."""
    if "cache" not in inputs:
        k, v = inputs["k"].double().transpose(1, 2), inputs["v"].double().transpose(1, 2)
        return {"out": _sdpa(inputs["q"].double(), k, v)}
    out, lse = reference_attention(inputs["q"], inputs["cache"], 0, **inputs["options"])
    return {"out": out, "lse": lse}


def composition(inputs: Inputs) -> Outputs:
    """The dequantized cache in the queries' dtype, products in that dtype, the softmax in fp32."""
    q, cache, options = inputs["q"], inputs["cache"], inputs["options"]
    B, M, H, D = q.shape
    outs, lses = [], []
    for b in range(B):
        tokens = read_sequence(cache, 0, b, torch.float32)
        k, v = tokens.k.to(q.dtype), tokens.v.to(q.dtype)
        queries = q[b].reshape(M, cache.kv_heads, H // cache.kv_heads, D).permute(1, 2, 0, 3)
        z = (queries @ k.unsqueeze(1).transpose(-1, -2)).float() * options.get("scale", D**-0.5)
        if "softcap" in options:
            z = options["softcap"] * torch.tanh(z / options["softcap"])
        length = int(cache.lengths[b])
        seen = visible(tokens, M, length, options.get("window"), cache.sinks, options.get("tree"), b)
        z = torch.where(seen.unsqueeze(1), z, -torch.inf)
        lse = torch.logsumexp(z, -1)
        p = torch.where(lse.unsqueeze(-1) == -torch.inf, 0.0, torch.exp(z - lse.unsqueeze(-1))).to(q.dtype)
        outs.append((p @ v.unsqueeze(1)).permute(2, 0, 1, 3).reshape(M, H, D))
        lses.append(lse.reshape(H, M))
    return {"out": torch.stack(outs), "lse": torch.stack(lses)}


# ---- benchmark -------------------------------------------------------------------------------------------------------


def _cache_bytes(kind: str) -> Callable[[Case], float]:
    def nbytes(case: Case) -> float:
        p = case.parameters
        numbers = float(2 * p["B"] * p["L"] * p["Hkv"] * p["D"])
        return numbers * {"bf16": 2.0, "int8": 1.0, "int4": 0.5, "int2": 0.25, "mixed": 0.4}[kind]

    return nbytes


def _flops(case: Case) -> float:
    p = case.parameters
    return float(4 * p["B"] * p["Hkv"] * p["G"] * p["L"] * p["D"])


def _tokcore(name: str, kind: str, options: Mapping[str, Any]) -> Variant:
    def prepare(case: Case, inputs: Inputs) -> Callable[[], Any]:
        p = case.parameters
        cache = tokcore.QuantizedKVCache(1, p["B"], p["Hkv"], p["D"], p["L"], device=inputs["q"].device, **options)
        cache.append(0, inputs["k"], inputs["v"])
        q = inputs["q"]
        return lambda: {"out": tokcore.decode_attention(q, cache, 0)}

    return Variant(name, "decode", prepare, peer=False, flops=_flops, bytes=_cache_bytes(kind), backends=("cpu",))


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, enable_gqa=True).transpose(1, 2)


def _prepare_sdpa(_: Case, inputs: Inputs) -> Callable[[], Any]:
    k, v = (inputs[name].transpose(1, 2).contiguous() for name in "kv")
    q = inputs["q"]
    return lambda: {"out": _sdpa(q, k, v)}


def _prepare_dequantize(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """What a library without a fused kernel does each step: dequantize the whole cache, then attend."""
    codes = []
    for name in "kv":
        x = inputs[name].transpose(1, 2).contiguous()
        scale = x.abs().amax(-1, keepdim=True).float() / 127
        codes.append(((x / scale).round().to(torch.int8), scale.to(x.dtype)))
    q = inputs["q"]

    def timed() -> dict[str, Tensor]:
        k, v = (code.to(q.dtype) * scale for code, scale in codes)
        return {"out": _sdpa(q, k, v)}

    return timed


def _prepare_append(case: Case, inputs: Inputs) -> Callable[[], Any]:
    """One token appended to an int4 cache with room for every round."""
    p = case.parameters
    cache = tokcore.QuantizedKVCache(1, p["B"], p["Hkv"], p["D"], p["L"] + 8192, high="int4", low=None)
    cache.append(0, inputs["k"], inputs["v"])
    k, v = inputs["k"][:, :1].contiguous(), inputs["v"][:, :1].contiguous()
    return lambda: cache.append(0, k, v)


_MIXED = {"high": "int8", "low": "int2", "high_ratio": 0.2, "symmetric": False}


def _goals() -> tuple[Goal | MemoryGoal, ...]:
    case = "B=1,H=32,Hkv=8,D=128,L={},bf16".format
    goals = [Goal(case(32768), "decode", "tokcore bf16", _SDPA, 5.0)]
    for L in (16384, 32768):
        goals += [
            Goal(case(L), "decode", "tokcore int8", "tokcore bf16", 1.8),
            Goal(case(L), "decode", "tokcore int4", "tokcore bf16", 2.7),
            Goal(case(L), "decode", "tokcore mixed 20/80 int8/int2", "tokcore bf16", 3.0),
        ]
    goals.append(Goal(case(4096), "decode", "tokcore append one token", "tokcore bf16", 20.0))
    return tuple(goals)


TABLE = OpTable(
    op="decode_attention",
    cases=(
        *(Case(name, parameters, frozenset({"verify", "quick"})) for name, parameters in plans(OPTIONS, 2)),
        *(
            Case(name, parameters, frozenset({"verify", "quick"}))
            for name, parameters in [plan for plan in plans(TREES) if "tree" in plan[1]][::3]
        ),
        *_bench_cases(),
    ),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    variants=(
        Variant(_SDPA, "decode", _prepare_sdpa, flops=_flops, bytes=_cache_bytes("bf16")),
        Variant(_DEQUANTIZE, "decode", _prepare_dequantize, slow=True, flops=_flops, bytes=_cache_bytes("int8")),
        _tokcore("tokcore bf16", "bf16", {"high": "bf16", "low": None}),
        _tokcore("tokcore int8", "int8", {"high": "int8", "low": None}),
        _tokcore("tokcore int4", "int4", {"high": "int4", "low": None}),
        _tokcore("tokcore int2", "int2", {"high": "int2", "low": None}),
        _tokcore("tokcore mixed 20/80 int8/int2", "mixed", _MIXED),
        Variant("tokcore append one token", "decode", _prepare_append, peer=False, backends=("cpu",)),
    ),
    goals=_goals(),
    support={
        option: {"cpu": "yes", "cuda": "no: no CUDA kernel yet"}
        for option in (
            "float32, bfloat16, float16",
            "codes of 8, 4 and 2 bits, keys and values each",
            "keys by token or by channel, values by token",
            "groups of 16, 32, 64, 128 or all",
            "two tiers, window and sinks in one call",
            "pages of 16, 32, 64, 128",
            "head_dim a multiple of 32 up to 256",
            "ragged sequences, several queries a sequence",
            "channel scales, rotation",
            "scale",
            "softcap",
            "window",
            "return_lse",
            "tree",
            "page tables that share their first pages, read once",
        )
    }
    | {
        "int8 products from codes": {"cpu": "AMX, bfloat16 and float16; fp32 arithmetic elsewhere", "cuda": "no"},
        "codes for keys but numbers for values": {"cpu": "no: codes for both or none", "cuda": "no"},
        "gradients": {"cpu": "no", "cuda": "no"},
    },
)
