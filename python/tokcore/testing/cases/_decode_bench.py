"""What ``tokcore bench --op decode_attention`` times, and the goals of the KV cache on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import tokcore
from tokcore.testing.cases._decode_peers import LLAMA_CPP, SDPA, peers
from tokcore.testing.cases._sources import H200
from tokcore.testing.table import AnyGoal, Case, Goal, Inputs, ShareGoal, SizeGoal, Variant

DECODE = "decode"  # an append too: it is compared with the decode that follows it
LENGTHS = (1024, 4096, 16384, 32768, 131072)
CUDA_LENGTHS = (4096, 32768, 131072)
BF16, INT8, INT4, INT2 = "tokcore bf16", "tokcore int8", "tokcore int4", "tokcore int2"
MIXED, APPENDED = "tokcore mixed 20/80 int8/int2", "tokcore append one token"
CACHES: dict[str, dict[str, Any]] = {
    BF16: {"high": "bf16", "low": None},
    INT8: {"high": "int8", "low": None},
    INT4: {"high": "int4", "low": None},
    INT2: {"high": "int2", "low": None},
    MIXED: {"high": "int8", "low": "int2", "high_ratio": 0.2},
}
CODE_BYTES = {BF16: 2.0, INT8: 1.0, INT4: 0.5, INT2: 0.25, MIXED: 0.4}


def bench_cases() -> tuple[Case, ...]:
    """One new token of 32 heads over 8 of the cache, from 1k to 128k tokens; and eight sequences."""

    def tags(B: int, L: int) -> set[str]:
        here = {"bench"} if B == 1 else {"large"}
        return here | {"bench-cuda"} if L in CUDA_LENGTHS else here

    return tuple(
        Case(
            f"B={B},H=32,Hkv=8,D=128,L={L},bf16",
            {"B": B, "L": L, "Hkv": 8, "G": 4, "D": 128, "dtype": torch.bfloat16},
            frozenset(tags(B, L)),
        )
        for B, lengths in ((1, LENGTHS), (8, CUDA_LENGTHS))
        for L in lengths
    )


def make_bench_cache(
    case: Case, name: str, room: int = 0, device: torch.device | str = "cpu"
) -> tokcore.QuantizedKVCache:
    """An empty cache for the tokens of a case and ``room`` more."""
    p = case.parameters
    return tokcore.QuantizedKVCache(1, p["B"], p["Hkv"], p["D"], p["L"] + room, **CACHES[name], device=device)


def cache_bytes(per_number: float) -> Callable[[Case], float]:
    """Bytes of the keys' and values' numbers or codes; scales are left out, so that no share is flattered."""

    def nbytes(case: Case) -> float:
        p = case.parameters
        return float(2 * p["B"] * p["L"] * p["Hkv"] * p["D"]) * per_number

    return nbytes


def flops(case: Case) -> float:
    """Both products, two FLOPs an element."""
    p = case.parameters
    return float(4 * p["B"] * p["Hkv"] * p["G"] * p["L"] * p["D"])


def _tokcore(name: str) -> Variant:
    def prepare(case: Case, inputs: Inputs) -> Callable[[], Any]:
        cache = make_bench_cache(case, name, device=inputs["k"].device)
        cache.append(0, inputs["k"], inputs["v"])
        q = inputs["q"]
        return lambda: {"out": tokcore.decode_attention(q, cache, 0)}

    return Variant(
        name,
        DECODE,
        prepare,
        peer=False,
        flops=flops,
        bytes=cache_bytes(CODE_BYTES[name]),
        keeps=lambda case: make_bench_cache(case, name).nbytes,
    )


def _prepare_append(case: Case, inputs: Inputs) -> Callable[[], Any]:
    """One token appended to an int4 cache that has room for every round."""
    cache = make_bench_cache(case, INT4, 8192)
    cache.append(0, inputs["k"], inputs["v"])
    k, v = (inputs[name][:, :1].contiguous() for name in "kv")
    return lambda: cache.append(0, k, v)


def _plain_bytes(case: Case) -> int:
    return int(cache_bytes(2.0)(case))


def bench_variants() -> tuple[Variant, ...]:
    """Peers first: the first is what speed-ups refer to."""
    return (
        *peers(flops, cache_bytes, _plain_bytes),
        *(_tokcore(name) for name in CACHES),
        Variant(APPENDED, DECODE, _prepare_append, peer=False, backends=("cpu",)),
    )


def bench_goals() -> tuple[AnyGoal, ...]:
    """The goal table of the KV cache."""
    name = "B=1,H=32,Hkv=8,D=128,L={},bf16".format
    goals: list[AnyGoal] = [
        Goal(name(32768), DECODE, BF16, SDPA, 5.0),
        ShareGoal(name(32768), DECODE, BF16, 0.75, 0.85),
    ]
    for L in (16384, 32768, 131072):
        goals += [Goal(name(L), DECODE, v, BF16, ratio) for v, ratio in ((INT8, 1.8), (INT4, 2.7), (MIXED, 3.0))]
    goals += [SizeGoal(name(32768), DECODE, v, SDPA, limit) for v, limit in ((INT8, 0.53), (INT4, 0.28), (MIXED, 0.23))]
    goals += [Goal(name(32768), DECODE, v, LLAMA_CPP[kind], 1.0) for v, kind in ((INT8, "q8_0"), (INT4, "q4_0"))]
    goals.append(Goal(name(4096), DECODE, APPENDED, BF16, 20.0))
    return (*goals, *_cuda_goals())


def _cuda_goals() -> list[AnyGoal]:
    """Shares of the memory's rate at 32k tokens and more; from 4k on, codes no slower than numbers."""
    name = "B={},H=32,Hkv=8,D=128,L={},bf16".format
    shares = {INT8: 0.85, INT4: 0.75, INT2: 0.6, MIXED: 0.6}
    goals: list[AnyGoal] = []
    for B in (1, 8):
        for L in CUDA_LENGTHS:
            goals += [Goal(name(B, L), DECODE, v, BF16, 1.0, backend="cuda") for v in shares]
            if L >= 32768:
                goals += [
                    ShareGoal(name(B, L), DECODE, v, share, backend="cuda", device=H200) for v, share in shares.items()
                ]
    return goals
