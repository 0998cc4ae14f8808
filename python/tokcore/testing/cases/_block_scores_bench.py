"""What ``tokcore bench --op attention_block_scores`` times, and its goals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokcore.testing.cases._attention import attention_flops, case_name, shape_parameters
from tokcore.testing.table import AnyGoal, Case, Goal, Inputs, MemoryGoal, Outputs, Variant

FORWARD = "forward"
EAGER, OURS = "softmax(q kᵀ) in full, pooled (eager PyTorch)", "tokcore"
_STATISTICS = ("sum", "count_above", "incoherence")
_MAIN, _LONG = (1, 4, 4, 4096, 4096), (1, 1, 1, 32768, 32768)  # B, H, Hkv, M, N on a CPU
_GPU, _GPU_LONG = (1, 8, 8, 8192, 8192), (1, 8, 8, 65536, 65536)
_MOST_ELEMENTS = 1 << 29  # of a matrix that the peer makes: with its copies, 5 GB
_SHARE = 0.04  # memory as a share of the matrix in the inputs' dtype, at the shorter length


def _case(sizes: tuple[int, ...], D: int, stat: str, tag: str) -> Case:
    shape = (*sizes, D)
    parameters = {**shape_parameters(shape), "dtype": torch.bfloat16, "stat": stat}
    return Case(case_name(shape, torch.bfloat16, stat), parameters, frozenset({tag}))


def _main(D: int, stat: str) -> Case:
    return _case(_MAIN, D, stat, "bench" if D == 64 else "large")


def _gpu(D: int, stat: str) -> Case:
    return _case(_GPU, D, stat, "bench-cuda")


def _long(backend: str) -> Case:
    if backend == "cpu":
        return _case(_LONG, 64, "sum", "large")
    return _case(_GPU_LONG, 128, "sum", "bench-cuda")


def bench_cases() -> tuple[Case, ...]:
    """Three statistics at lengths whose matrix still fits, and one at a length where it does not."""
    sizes = [(D, stat) for D in (64, 128) for stat in _STATISTICS]
    return (*(_main(*size) for size in sizes), *(_gpu(*size) for size in sizes), _long("cpu"), _long("cuda"))


def _pooled(inputs: Inputs) -> Outputs:
    """The whole matrix of weights in fp32, and a reduction over its blocks; lengths are multiples of the blocks."""
    q, k = inputs["q"], inputs["k"]
    bm, bn = inputs.get("block", (64, 64))
    with torch.no_grad():
        shared = k.repeat_interleave(q.size(1) // k.size(1), 1) if q.size(1) > k.size(1) else k
        scores = (q * q.size(-1) ** -0.5) @ shared.transpose(-1, -2)
        weights = scores.softmax(-1, dtype=torch.float32)
        del scores
        blocks = weights.unflatten(-1, (-1, bn)).unflatten(-3, (-1, bm))  # [B, H, rows, bm, columns, bn]
        return {"scores": _statistic(blocks, inputs.get("stat", "sum"), inputs.get("threshold", 1e-3))}


def _statistic(blocks: Tensor, stat: str, threshold: float) -> Tensor:
    inside = (-3, -1)
    if stat == "sum":
        return blocks.sum(inside)
    if stat == "max":
        return blocks.amax(inside)
    if stat == "count_above":
        return (blocks > threshold).sum(inside).float()
    return blocks.amax(inside) / blocks.mean(inside)


def _is_pooled(case: Case) -> bool:
    p = case.parameters
    bm, bn = p.get("block", (64, 64))
    return not (p.get("causal") or "scale" in p or p["M"] % bm or p["N"] % bn)


def _does_not_fit(case: Case) -> str | None:
    p = case.parameters
    elements = p["B"] * p["H"] * p["M"] * p["N"]
    return f"a matrix of {elements / 1e9:.1f} billion weights" if elements > _MOST_ELEMENTS else None


def _variant(name: str, call: Callable[[Inputs], Outputs], **fields: Any) -> Variant:
    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        return lambda: call(inputs)

    return Variant(name, FORWARD, prepare, flops=attention_flops(2.0, dense=True), **fields)


def bench_variants(run: Callable[[Inputs], Outputs]) -> tuple[Variant, ...]:
    """``run`` is tokcore's."""
    return (
        _variant(EAGER, _pooled, applies=_is_pooled, unavailable=_does_not_fit),
        _variant(OURS, run, peer=False),
    )


def bench_goals() -> tuple[AnyGoal, ...]:
    """Over the matrix in full; and memory that is linear in the length: as a share of the matrix it falls with it."""
    goals: list[AnyGoal] = [Goal(_main(64, stat).name, FORWARD, OURS, EAGER, 4.0) for stat in _STATISTICS]
    goals += [Goal(_gpu(D, "sum").name, FORWARD, OURS, EAGER, 4.0, backend="cuda") for D in (64, 128)]
    for backend, short, long in (("cpu", _main(64, "sum"), _long("cpu")), ("cuda", _gpu(128, "sum"), _long("cuda"))):
        shrinks = short.parameters["N"] / long.parameters["N"]
        goals.append(MemoryGoal(short.name, FORWARD, OURS, "share_of_logits", _SHARE, backend=backend))
        goals.append(MemoryGoal(long.name, FORWARD, OURS, "share_of_logits", _SHARE * shrinks, backend=backend))
    return tuple(goals)
