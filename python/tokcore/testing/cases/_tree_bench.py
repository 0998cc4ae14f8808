"""Token trees and shared prefixes in ``tokcore bench --op decode_attention``: cases, variants and goals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokcore
from tokcore.testing.cases import _flashinfer
from tokcore.testing.cases._decode_bench import BF16, CACHES, CODE_BYTES, INT8, cache_bytes, make_bench_cache
from tokcore.testing.cases._sources import H200
from tokcore.testing.cases._trees import random_parents
from tokcore.testing.table import AnyGoal, Case, Goal, Inputs, TimeGoal, Variant

TREE, SHARED = "tree", "shared prefix"  # measures
MASKED = "SDPA enable_gqa, explicit mask"
FLASHINFER = "FlashInfer bf16, explicit mask"
ONE = "tokcore bf16, one token"
APART, TOGETHER = "tokcore bf16, separate pages", "tokcore bf16, shared pages"
_OWN = 64  # tokens of each sequence after the shared prefix


def tree_cases() -> tuple[Case, ...]:
    """Trees of 16, 64 and 256 nodes over 4k and 32k tokens; eight sequences that share most of theirs."""
    sizes = {"Hkv": 8, "G": 4, "D": 128, "dtype": torch.bfloat16}
    plans = [
        *((1, N, 4096, {"bench"}) for N in (16, 64, 256)),
        *((B, N, 32768, {"large", "bench-cuda"}) for B in (1, 8) for N in (16, 64)),
    ]
    shared = [(4096, {"bench", "bench-cuda"}), (32768, {"large", "bench-cuda"})]
    return (
        *(
            Case(_tree_name(N, B, L), {**sizes, "B": B, "L": L, "M": N, "tree": "wide"}, frozenset(tags))
            for B, N, L, tags in plans
        ),
        *(Case(_shared_name(L), {**sizes, "B": 8, "L": L, "shared": True}, frozenset(tags)) for L, tags in shared),
    )


def _tree_name(N: int, B: int, L: int) -> str:
    return f"tree N={N},B={B},H=32,Hkv=8,D=128,L={L},bf16"


def _shared_name(L: int) -> str:
    return f"shared prefix,B=8,H=32,Hkv=8,D=128,L={L},bf16"


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
        tensors = (parents, torch.zeros(parents.shape, dtype=torch.int64), counts)
        inputs["tree"] = tokcore.TokenTree(*(x.to(inputs["k"].device) for x in tensors))
    if is_shared(case):
        for name in "kv":
            inputs[name][1:, :-_OWN] = inputs[name][:1, :-_OWN]


def masked_sdpa(inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """What a tree means to SDPA: a matrix of nodes by tokens."""
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    mask, G = _tree_mask(inputs), q.size(1) // k.size(1)
    heads = [  # one by one: all of a long cache in fp64 would be gigabytes
        F.scaled_dot_product_attention(
            q[:, G * h : G * h + G].to(dtype),
            k[:, h : h + 1].to(dtype),
            v[:, h : h + 1].to(dtype),
            attn_mask=mask,
            enable_gqa=True,
        )
        for h in range(k.size(1))
    ]
    return torch.cat(heads, dim=1).transpose(1, 2)


def _tree_mask(inputs: Inputs) -> Tensor:
    """bool [B, 1, N, L]: all before the tree, and in it each node's ancestors."""
    q, L = inputs["q"], inputs["k"].size(1)
    B, N = q.shape[:2]
    mask = torch.ones(B, 1, N, L, dtype=torch.bool, device=q.device)
    mask[:, 0, :, L - N :] = inputs["tree"].mask()
    return mask


def _prepare_masked(_: Case, inputs: Inputs) -> Callable[[], Any]:
    q, k, v = (inputs[name].transpose(1, 2).contiguous() for name in "qkv")
    mask = _tree_mask(inputs)
    return lambda: {"out": F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True).transpose(1, 2)}


def _flops(case: Case) -> float:
    p = case.parameters
    return float(4 * p["B"] * p["Hkv"] * p["G"] * p.get("M", 1) * p["L"] * p["D"])


def _filled(case: Case, inputs: Inputs, name: str) -> tokcore.QuantizedKVCache:
    cache = make_bench_cache(case, name, 16, inputs["k"].device)
    cache.append(0, inputs["k"], inputs["v"])
    return cache


def _tree(name: str) -> Variant:
    def prepare(case: Case, inputs: Inputs) -> Callable[[], Any]:
        cache, q, tree = _filled(case, inputs, name), inputs["q"], inputs["tree"]
        return lambda: {"out": tokcore.decode_attention(q, cache, 0, tree=tree)}

    nbytes = cache_bytes(CODE_BYTES[name])
    return Variant(name, TREE, prepare, peer=False, flops=_flops, bytes=nbytes, applies=is_tree)


def _prepare_one(case: Case, inputs: Inputs) -> Callable[[], Any]:
    cache, q = _filled(case, inputs, BF16), inputs["q"][:, :1].contiguous()
    return lambda: tokcore.decode_attention(q, cache, 0)


def _prepare_apart(case: Case, inputs: Inputs) -> Callable[[], Any]:
    cache, q = _filled(case, inputs, BF16), inputs["q"]
    return lambda: {"out": tokcore.decode_attention(q, cache, 0)}


def _prepare_together(case: Case, inputs: Inputs) -> Callable[[], Any]:
    p, q = case.parameters, inputs["q"]
    cache = make_bench_cache(case, BF16, 16, inputs["k"].device)
    k, v = inputs["k"], inputs["v"]
    cache.append(0, k[:, :-_OWN], v[:, :-_OWN], [p["L"] - _OWN] + [0] * (p["B"] - 1))
    cache.fork(0, range(1, p["B"]))
    cache.append(0, k[:, -_OWN:], v[:, -_OWN:])
    return lambda: {"out": tokcore.decode_attention(q, cache, 0)}


def tree_variants() -> tuple[Variant, ...]:
    """Peers first."""
    nbytes = cache_bytes(2.0)
    return (
        Variant(MASKED, TREE, _prepare_masked, flops=_flops, bytes=nbytes, applies=is_tree),
        Variant(
            FLASHINFER,
            TREE,
            _flashinfer.tree,
            unavailable=_flashinfer.unavailable,
            flops=_flops,
            bytes=nbytes,
            backends=("cuda",),
            applies=is_tree,
        ),
        *(_tree(name) for name in CACHES),
        Variant(ONE, TREE, _prepare_one, peer=False, bytes=nbytes, applies=is_tree),
        Variant(APART, SHARED, _prepare_apart, peer=False, flops=_flops, applies=is_shared),
        Variant(TOGETHER, SHARED, _prepare_together, peer=False, flops=_flops, applies=is_shared),
    )


def tree_goals() -> tuple[AnyGoal, ...]:
    """N nodes in at most 1.3 and 3 times the time of one; four times as fast as SDPA with the matrix. On a GPU, times
    in which the memory of an H200 reads the cache once, and little more."""
    small, large = _tree_name(16, 1, 4096), _tree_name(64, 1, 4096)
    return (
        Goal(small, TREE, BF16, ONE, 1 / 1.3),
        Goal(large, TREE, BF16, ONE, 1 / 3.0),
        Goal(small, TREE, BF16, MASKED, 4.0),
        Goal(large, TREE, BF16, MASKED, 4.0),
        Goal(_shared_name(4096), SHARED, TOGETHER, APART, 2.0),
        TimeGoal(_tree_name(16, 8, 32768), TREE, BF16, H200, 255e-6),
        TimeGoal(_tree_name(16, 8, 32768), TREE, INT8, H200, 145e-6),
        TimeGoal(_tree_name(16, 1, 32768), TREE, BF16, H200, 36e-6),
        TimeGoal(_tree_name(64, 8, 32768), TREE, BF16, H200, 400e-6),
    )
