"""What ``tokcore bench --op paro_attention`` times, and its goals.

Kernel, kernel with quantization, and the whole call are measures of their own; FLOPs count kept blocks only, text's
among them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokcore
from tokcore.block_mask import BlockMask
from tokcore.permutation import permutation_indices
from tokcore.reference.paro_attention import kept_blocks
from tokcore.testing.cases import _sage
from tokcore.testing.cases._attention import kept_columns
from tokcore.testing.cases._sources import H200
from tokcore.testing.table import AnyGoal, Case, Goal, Inputs, RateGoal, TimeGoal, Variant

CALL, KERNEL, QUANTIZED, PREPARE = "whole call", "attention alone", "attention with quantization", "prologue alone"
SDPA = "F.scaled_dot_product_attention (dense)"
BF16 = "tokcore.block_sparse_attention bf16 (same blocks)"
COMPOSED = "RoPE, gather, block-sparse bf16, scatter"
EAGER_ROPE, ROPE_ONLY = "eager PyTorch: RoPE alone", "tokcore: RoPE alone, to bf16"
OURS, PARTS = "tokcore int8", "tokcore int8: RoPE alone, attention alone"
MakeCase = Callable[..., Case]  # (shape, dtype, formats, option, tags)
_MAIN, _SWEEP = (1, 4, (16, 16, 16), (0, 0)), (1, 16, (16, 32, 32), (0, 0))  # B, H, grid, text on a CPU, on a GPU
LAYERS = {  # B, H, grid, text, D
    "Flux": (1, 24, (1, 64, 64), (512, 0), 128),
    "CogVideoX": (2, 48, (13, 30, 45), (226, 0), 64),
    "Wan 480p": (1, 40, (21, 30, 52), (0, 0), 128),
    "Wan 720p": (1, 40, (21, 45, 80), (0, 0), 128),
}


def bench_name(sizes: tuple[Any, ...], D: int, density: float, structured: bool, pv: str = "int8") -> str:
    """The name of a timed case."""
    B, H, grid, text = sizes
    N = grid[0] * grid[1] * grid[2] + sum(text)
    label = f"B={B},H={H},Hkv={H},N={N},D={D},bf16,qk=int8,pv={pv},density={density:g}"
    return f"{label},{'structured' if structured else 'random'}"


def bench_cases(make_case: MakeCase) -> tuple[Case, ...]:
    """Random and structured masks side by side; other formats; layers of models, two heads of them on a CPU."""

    def case(
        sizes: tuple[Any, ...],
        D: int,
        density: float,
        structured: bool,
        tag: str,
        pv: str = "int8",
        measures: tuple[str, ...] = (CALL, KERNEL, QUANTIZED, PREPARE),
    ) -> Case:
        B, H, grid, text = sizes
        made = make_case((B, H, H, grid, text, D), torch.bfloat16, ("int8", pv), "", {tag})
        parameters = {**made.parameters, "density": density, "structured": structured, "rope": "pairs"}
        return Case(bench_name(sizes, D, density, structured, pv), {**parameters, "measures": measures}, made.tags)

    def swept(D: int, density: float, structured: bool) -> Case:
        """On a GPU: attention at every density, all that surrounds it at 0.3."""
        measures = (CALL, KERNEL, QUANTIZED, *((PREPARE,) if structured else ())) if density == 0.3 else (KERNEL,)
        return case(_SWEEP, D, density, structured, "bench-cuda", measures=measures)

    both = (False, True)
    kernels = (CALL, KERNEL, QUANTIZED)
    layers = []
    for name, (B, H, grid, text, D) in LAYERS.items():
        if name != "Wan 720p":
            layers += [case((1, 2, grid, text), D, 0.3, s, "large", measures=kernels) for s in both]
        if name in ("CogVideoX", "Wan 720p"):
            layers += [case((B, H, grid, text), D, 0.3, s, "bench-cuda", measures=(CALL,)) for s in both]
    return (
        *(case(_MAIN, D, density, s, "bench") for D in (64, 128) for density in (0.5, 0.3) for s in both),
        *(case(_MAIN, D, 0.3, False, "large", pv) for D in (64, 128) for pv in ("int4", "fp8", "bf16")),
        *(
            swept(D, density, s)
            for D in (64, 128)
            for density in (1.0, 0.5, 0.3, 0.1)
            for s in both
            if s or density < 1
        ),
        *(case(_SWEEP, 128, 0.3, True, "bench-cuda", pv, (KERNEL,)) for pv in ("int4", "fp8", "bf16")),
        *layers,
    )


def flops(dense: bool) -> Callable[[Case], float]:
    """4·B·H·N²·D of the kept blocks, or of all. Text is dense and kept by every row whatever the mask says: of a mask
    that knows nothing of it, that is expected to add its share of what the mask leaves out."""

    def count(case: Case) -> float:
        p = case.parameters
        blocks = -(-p["N"] // 64)
        text = sum(-(-length // 64) for length in p["text"]) / blocks
        kept = kept_columns(blocks, p.get("density", 0.6)) / blocks
        share = 1.0 if dense else text + (1.0 - text) * (kept + (1.0 - kept) * text)
        return float(4.0 * share * p["B"] * p["H"] * p["N"] ** 2 * p["D"])

    return count


def _variant(
    name: str,
    measure: str,
    make: Callable[[Inputs], Callable[[], Any]],
    dense: bool = False,
    rope: bool = False,
    **fields: Any,
) -> Variant:
    """``rope``: for cases with tables for it alone."""

    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        call = make(inputs)

        def timed() -> Any:
            with torch.no_grad():
                return call()

        return timed

    count = None if measure == PREPARE else flops(dense)
    return Variant(name, measure, prepare, flops=count, applies=_applies(measure, rope), **fields)


def _applies(measure: str, rope: bool = False) -> Callable[[Case], bool]:
    def applies(case: Case) -> bool:
        p = case.parameters
        return measure in p.get("measures", (measure,)) and (not rope or ("rope" in p and case.timed))

    return applies


def _dense(inputs: Inputs) -> Callable[[], Any]:
    return lambda: F.scaled_dot_product_attention(inputs["q"], inputs["k"], inputs["v"])


def _effective_mask(inputs: Inputs) -> BlockMask:
    return kept_blocks(inputs["block_mask"], inputs.get("text", (0, 0)))


def _bf16_kernel(inputs: Inputs) -> Callable[[], Any]:
    mask = _effective_mask(inputs)
    return lambda: tokcore.block_sparse_attention(inputs["q"], inputs["k"], inputs["v"], mask)


def _composed(inputs: Inputs) -> Callable[[], Any]:
    """What people compose: RoPE, gather, block-sparse attention in bf16, scatter."""
    mask, device = _effective_mask(inputs), inputs["q"].device
    orders = [
        permutation_indices(code, inputs["grid"], inputs.get("text", (0, 0)), device=device)
        for code in inputs["permutation"]
    ]
    order = torch.stack(orders)
    index = order[None, :, :, None].expand_as(inputs["k"])
    inverse = order.argsort(-1)[None, :, :, None].expand_as(inputs["k"])

    def call() -> dict[str, Tensor]:
        q, k = _eager_rope(inputs)
        q, k, v = (x.gather(2, index) for x in (q, k, inputs["v"]))
        return {"out": tokcore.block_sparse_attention(q, k, v, mask).gather(2, inverse)}

    return call


def _eager_rope(inputs: Inputs) -> tuple[Tensor, Tensor]:
    cos, sin = (table.to(inputs["q"].dtype).repeat_interleave(2, 1) for table in inputs["rope"])

    def turned(x: Tensor) -> Tensor:
        swapped = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        result: Tensor = x * cos + swapped * sin
        return result

    return turned(inputs["q"]), turned(inputs["k"])


def _prepared(inputs: Inputs, **changes: Any) -> Callable[[], tokcore.ParoOperands]:
    options = {name: value for name, value in inputs.items() if name not in ("block_mask", "scale")}
    return lambda: tokcore.paro_prepare(**{**options, "need_lse": False, **changes})


def _kernel(inputs: Inputs) -> Callable[[], Any]:
    operands = _prepared(inputs)()
    return lambda: operands.attend(inputs["block_mask"])


def _call(inputs: Inputs) -> Callable[[], Any]:
    return lambda: {"out": tokcore.paro_attention(**inputs)}


def _quantized(inputs: Inputs) -> Callable[[], Any]:
    """Without RoPE, in reading order: what is left of the prologue is quantization."""
    left = {name: value for name, value in inputs.items() if name not in ("rope", "rope_pairs")}
    return lambda: tokcore.paro_attention(**{**left, "permutation": 0})


def _parts(inputs: Inputs) -> Callable[[], Any]:
    """What a call needs at least: RoPE, and attention over operands that are there."""
    attend, rope = _kernel(inputs), _rope_only(inputs)

    def call() -> Any:
        rope()
        return attend()

    return call


def _rope_only(inputs: Inputs) -> Callable[[], Any]:
    return _prepared(inputs, qk="bf16", pv="bf16", permutation=0)


def bench_variants() -> tuple[Variant, ...]:
    """Peers first, measure by measure."""
    own: dict[str, Any] = {"peer": False}
    turned: dict[str, Any] = {"rope": True}
    gpu: dict[str, Any] = {"backends": ("cuda",), "applies": _applies(QUANTIZED, rope=True)}
    sparge = "SpargeAttn block-sparse 8-bit (blocks of 128×64, on Hopper 64×128)"
    return (
        _variant(SDPA, CALL, _dense, True),
        _variant(BF16, CALL, _bf16_kernel),
        _variant(COMPOSED, CALL, _composed, **turned),
        _variant(OURS, CALL, _call, **own),
        _variant(PARTS, CALL, _parts, **own, **turned),
        _variant(BF16, KERNEL, _bf16_kernel),
        _variant(OURS, KERNEL, _kernel, **own),
        _variant(BF16, QUANTIZED, _bf16_kernel),
        Variant(
            "SageAttention 8-bit (dense)", QUANTIZED, _sage.dense, unavailable=_sage.no_sage, flops=flops(True), **gpu
        ),
        Variant(sparge, QUANTIZED, _sage.sparse, unavailable=_sage.no_sparge, flops=flops(False), **gpu),
        _variant(OURS, QUANTIZED, _quantized, **own),
        _variant(EAGER_ROPE, PREPARE, lambda inputs: partial(_eager_rope, inputs), **turned),
        _variant(ROPE_ONLY, PREPARE, _rope_only, **own),
        _variant(OURS, PREPARE, lambda inputs: _prepared(inputs), **own),
    )


def bench_goals() -> tuple[AnyGoal, ...]:
    """Against bf16 over the same blocks; what the prologue costs beyond RoPE; rates and whole layers on an H200."""
    goals: list[AnyGoal] = []
    for D, rate in ((64, 600e12), (128, 900e12)):
        for structured in (False, True):
            here, there = bench_name(_MAIN, D, 0.3, structured), bench_name(_SWEEP, D, 0.3, structured)
            goals.append(Goal(here, CALL, OURS, BF16, 1.2))
            goals.append(Goal(here, CALL, OURS, PARTS, 1 / 1.05))
            goals.append(Goal(there, CALL, OURS, PARTS, 1 / 1.02, backend="cuda"))
            goals.append(RateGoal(there, KERNEL, OURS, H200, rate))
        goals.append(RateGoal(bench_name(_SWEEP, D, 1.0, True), KERNEL, OURS, H200, rate))
    for layer, seconds in (("Wan 720p", 40e-3), ("CogVideoX", 4.2e-3)):
        *sizes, D = LAYERS[layer]
        name = bench_name(tuple(sizes), D, 0.3, structured=True)
        goals.append(TimeGoal(name, CALL, OURS, H200, seconds))
    return tuple(goals)
