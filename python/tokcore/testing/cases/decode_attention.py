"""Case table of ``decode_attention``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

import tokcore
from tokcore.reference.decode_attention import decode_attention as reference_attention
from tokcore.reference.decode_attention import visible
from tokcore.reference.kv_cache import read_sequence
from tokcore.testing.cases._decode_bench import bench_cases, bench_goals, bench_variants
from tokcore.testing.cases._decode_peers import sdpa
from tokcore.testing.cases._kv_cache import fill, keys_and_values, make_cache, plans
from tokcore.testing.cases._sources import random_source
from tokcore.testing.cases._tree_bench import (
    add_bench_inputs,
    is_shared,
    is_tree,
    masked_sdpa,
    tree_cases,
    tree_goals,
    tree_variants,
)
from tokcore.testing.cases._trees import random_parents
from tokcore.testing.table import Case, Inputs, OpTable, Outputs

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


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """q, and a cache that holds keys and values (bench cases: the keys and values themselves)."""
    p = case.parameters
    inputs = keys_and_values(case, device, seed)
    generator = random_source(case, device, seed + 1)
    shape = (p["B"], p.get("M", 1), p["Hkv"] * p["G"], p["D"])
    q = torch.randn(shape, generator=generator, device=generator.device)
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
    add_bench_inputs(case, inputs, seed)
    return inputs


def _is_plain(case: Case) -> bool:
    return case.timed and not (is_tree(case) or is_shared(case))


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    out, lse = tokcore.decode_attention(inputs["q"], inputs["cache"], 0, return_lse=True, **inputs["options"])
    return {"out": out, "lse": lse}


def reference(inputs: Inputs) -> Outputs:
    """fp64 over the dequantized cache; of a bench case, over the keys and values themselves."""
    if "tree" in inputs:
        return {"out": masked_sdpa(inputs, torch.float64)}
    if "cache" not in inputs:
        q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
        G = q.size(1) // k.size(1)
        heads = [  # one by one: all of a long cache in fp64 would be gigabytes
            sdpa(q[:, G * h : G * h + G].transpose(1, 2).double(), k[:, h : h + 1].double(), v[:, h : h + 1].double())
            for h in range(k.size(1))
        ]
        return {"out": torch.cat(heads, dim=2)}
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


TABLE = OpTable(
    op="decode_attention",
    cases=(
        *(Case(name, parameters, frozenset({"verify", "quick"})) for name, parameters in plans(OPTIONS, 2)),
        *(
            Case(name, parameters, frozenset({"verify", "quick"}))
            for name, parameters in [plan for plan in plans(TREES) if "tree" in plan[1]][::3]
        ),
        *bench_cases(),
        *tree_cases(),
    ),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    variants=(*(replace(variant, applies=_is_plain) for variant in bench_variants()), *tree_variants()),
    goals=(*bench_goals(), *tree_goals()),
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in (
            "float32, bfloat16, float16",
            "codes of 8, 4 and 2 bits, keys and values each",
            "keys and values by token or by channel, each",
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
        )
    }
    | {
        "page tables that share their first pages": {"cpu": "read once", "cuda": "read by every sequence"},
        "products from codes": {
            "cpu": "int8: AMX, bfloat16 and float16; fp32 arithmetic elsewhere",
            "cuda": "fp16: bfloat16 and float16; fp32 arithmetic for float32",
        },
        "codes for keys but numbers for values": {"cpu": "no: codes for both or none", "cuda": "no"},
        "gradients": {"cpu": "no", "cuda": "no"},
    },
)
