"""Token trees and shared prefixes in ``tokcore bench --op decode_attention``: cases, variants and goals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokcore
from tokcore.testing.cases._decode_bench import BF16, CACHES, cache_bytes
from tokcore.testing.cases._trees import random_parents
from tokcore.testing.table import Case, Goal, Inputs, Variant

TREE, SHARED = "tree", "shared prefix"  # measures
MASKED = "SDPA enable_gqa, explicit mask"
ONE = "tokcore bf16, one token"
APART, TOGETHER = "tokcore bf16, separate pages", "tokcore bf16, shared pages"
_OWN = 64  # tokens of each sequence after the shared prefix


def tree_cases() -> tuple[Case, ...]:
    """Trees of 16, 64 and 256 nodes over 4k tokens; eight sequences that share most of theirs."""
    sizes = {"B": 1, "Hkv": 8, "G": 4, "D": 128, "dtype": torch.bfloat16}
    name = "B=1,H=32,Hkv=8,D=128,L={},bf16".format
    plans = [(16, 4096), (64, 4096), (256, 4096), (16, 32768), (64, 32768)]
    return (
        *(
            Case(
                f"tree N={N},{name(L)}",
                {**sizes, "L": L, "M": N, "tree": "wide"},
                frozenset({"bench"} if L == 4096 else {"large"}),
            )
            for N, L in plans
        ),
        Case(
            "shared prefix,B=8,H=32,Hkv=8,D=128,L=4096,bf16",
            {**sizes, "B": 8, "L": 4096, "shared": True},
            frozenset({"bench"}),
        ),
    )


def is_tree(case: Case) -> bool:
    """A case of the measure ``tree``."""
    return case.timed and "tree" in case.parameters


def is_shared(case: Case) -> bool:
    """A case of the measure ``shared prefix``."""
    return bool(case.parameters.get("shared"))


def add_bench_inputs(case: Case, inputs: Inputs, seed: int) -> None:
    """The tree of a tree case; what sequences have in common of a shared one."""
    p = case.parameters
    if is_tree(case):
        parents, counts = random_parents(p["B"], p["M"], p["tree"], torch.Generator().manual_seed(seed), ragged=False)
        inputs["tree"] = tokcore.TokenTree(parents, torch.zeros(parents.shape, dtype=torch.int64), counts)
    if is_shared(case):
        for name in "kv":
            inputs[name][1:, :-_OWN] = inputs[name][:1, :-_OWN]


def masked_sdpa(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """What a tree means to SDPA: a matrix of nodes by tokens."""
    q, k, v = (inputs[name].to(dtype).transpose(1, 2) for name in "qkv")
    B, N, L = q.size(0), q.size(2), k.size(2)
    mask = torch.ones(B, 1, N, L, dtype=torch.bool)
    mask[:, 0, :, L - N :] = inputs["tree"].mask()
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)


def _prepare_masked(_: Case, inputs: Inputs) -> Callable[[], Any]:
    q, k, v = (inputs[name].transpose(1, 2).contiguous() for name in "qkv")
    N, L = q.size(2), k.size(2)
    mask = torch.ones(q.size(0), 1, N, L, dtype=torch.bool)
    mask[:, 0, :, L - N :] = inputs["tree"].mask()
    return lambda: {"out": F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)}


def _flops(case: Case) -> float:
    p = case.parameters
    return float(4 * p["B"] * p["Hkv"] * p["G"] * p.get("M", 1) * p["L"] * p["D"])


def _filled(case: Case, inputs: Inputs, name: str) -> tokcore.QuantizedKVCache:
    p = case.parameters
    cache = tokcore.QuantizedKVCache(1, p["B"], p["Hkv"], p["D"], p["L"] + 16, **CACHES[name])
    cache.append(0, inputs["k"], inputs["v"])
    return cache


def _tree(name: str) -> Variant:
    def prepare(case: Case, inputs: Inputs) -> Callable[[], Any]:
        cache, q, tree = _filled(case, inputs, name), inputs["q"], inputs["tree"]
        return lambda: {"out": tokcore.decode_attention(q, cache, 0, tree=tree)}

    own = {"peer": False, "flops": _flops, "backends": ("cpu",), "applies": is_tree}
    return Variant(name, TREE, prepare, **own)  # type: ignore[arg-type]


def _prepare_one(case: Case, inputs: Inputs) -> Callable[[], Any]:
    cache, q = _filled(case, inputs, BF16), inputs["q"][:, :1].contiguous()
    return lambda: tokcore.decode_attention(q, cache, 0)


def _prepare_apart(case: Case, inputs: Inputs) -> Callable[[], Any]:
    cache, q = _filled(case, inputs, BF16), inputs["q"]
    return lambda: {"out": tokcore.decode_attention(q, cache, 0)}


def _prepare_together(case: Case, inputs: Inputs) -> Callable[[], Any]:
    p, q = case.parameters, inputs["q"]
    cache = tokcore.QuantizedKVCache(1, p["B"], p["Hkv"], p["D"], p["L"] + 16, **CACHES[BF16])
    k, v = inputs["k"], inputs["v"]
    cache.append(0, k[:, :-_OWN], v[:, :-_OWN], [p["L"] - _OWN] + [0] * (p["B"] - 1))
    cache.fork(0, range(1, p["B"]))
    cache.append(0, k[:, -_OWN:], v[:, -_OWN:])
    return lambda: {"out": tokcore.decode_attention(q, cache, 0)}


def tree_variants() -> tuple[Variant, ...]:
    """Peers first."""
    nbytes = cache_bytes(2.0)
    return (
        Variant(MASKED, TREE, _prepare_masked, flops=_flops, applies=is_tree),
        *(_tree(name) for name in CACHES),
        Variant(ONE, TREE, _prepare_one, peer=False, bytes=nbytes, backends=("cpu",), applies=is_tree),
        Variant(APART, SHARED, _prepare_apart, peer=False, flops=_flops, backends=("cpu",), applies=is_shared),
        Variant(TOGETHER, SHARED, _prepare_together, peer=False, flops=_flops, backends=("cpu",), applies=is_shared),
    )


def tree_goals() -> tuple[Goal, ...]:
    """N nodes in at most 1.3 and 3 times the time of one; four times as fast as SDPA with the matrix."""
    name = "tree N={},B=1,H=32,Hkv=8,D=128,L=4096,bf16".format
    return (
        Goal(name(16), TREE, BF16, ONE, 1 / 1.3),
        Goal(name(64), TREE, BF16, ONE, 1 / 3.0),
        Goal(name(16), TREE, BF16, MASKED, 4.0),
        Goal(name(64), TREE, BF16, MASKED, 4.0),
        Goal("shared prefix,B=8,H=32,Hkv=8,D=128,L=4096,bf16", SHARED, TOGETHER, APART, 2.0),
    )
