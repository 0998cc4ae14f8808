"""Case table of ``attention_block_scores``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.reference.attention_block_scores import attention_block_scores as reference_scores
from tokcore.reference.attention_block_scores import scores_of_logits
from tokcore.reference.block_sparse_attention import visible_elements
from tokcore.testing.cases._attention import (
    attention_flops,
    attention_tensors,
    case_name,
    cases_of,
    shape_parameters,
)
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, Variant

OPTIONS: dict[str, dict[str, Any]] = {
    "max": {"stat": "max"},
    "count": {"stat": "count_above", "threshold": 0.003},
    "incoherence": {"stat": "incoherence"},
    "causal": {"causal": True},
    "max-causal": {"stat": "max", "causal": True},
    "count-causal": {"stat": "count_above", "threshold": 0.01, "causal": True},
    "incoherence-causal": {"stat": "incoherence", "causal": True},
    "block-128x64": {"block": (128, 64)},
    "block-64x128": {"block": (64, 128)},
    "block-128": {"block": (128, 128), "stat": "incoherence"},
    "scale": {"scale": 0.3},
    "sharp": {"sharp": 8.0},
    "sharp-incoherence": {"sharp": 8.0, "stat": "incoherence"},
    "strided": {"strided": True},
}
_PASSED = ("stat", "threshold", "causal", "block", "scale")


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Tensors and options by argument name."""
    inputs = attention_tensors(case, device, seed, values=False)
    return inputs | {name: case.parameters[name] for name in _PASSED if name in case.parameters}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    return {"scores": tokcore.attention_block_scores(**inputs)}


def reference(inputs: Inputs) -> Outputs:
    """fp64."""
    return {"scores": reference_scores(**inputs)}


def composition(inputs: Inputs) -> Outputs:
    """A matrix product in the inputs' dtype, everything after it in fp32."""
    q, k = inputs["q"], inputs["k"]
    visible = visible_elements(None, (q.size(2), k.size(2)), inputs.get("causal", False), q.device)
    scale = inputs.get("scale", 1.0 / math.sqrt(q.size(-1)))
    z = (q @ k.repeat_interleave(q.size(1) // k.size(1), 1).transpose(-1, -2)).float() * scale
    z = z.masked_fill(~visible, -math.inf)
    block, stat = inputs.get("block", (64, 64)), inputs.get("stat", "sum")
    return {"scores": scores_of_logits(z, visible, block, stat, inputs.get("threshold", 1e-3))}


def _bench_case(D: int, stat: str) -> Case:
    shape = (1, 4, 4, 4096, 4096, D)
    parameters = {**shape_parameters(shape), "dtype": torch.bfloat16, "stat": stat}
    return Case(case_name(shape, torch.bfloat16, stat), parameters, frozenset({"bench", "bench-cuda"}))


def _variant(name: str, call: Callable[[Inputs], Any], peer: bool) -> Variant:
    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        return lambda: call(inputs)

    return Variant(name, "forward", prepare, peer=peer, flops=attention_flops(2.0, dense=True))


def _eager(inputs: Inputs) -> dict[str, Tensor]:
    with torch.no_grad():
        return composition(inputs)


EAGER, OURS = "eager PyTorch (full matrix)", "tokcore"
SUPPORT = {
    option: {"cpu": "yes", "cuda": "yes"}
    for option in (
        "float32, bfloat16, float16",
        "blocks 64x64, 128x64, 64x128, 128x128",
        "head sizes 32 to 256",
        "Hkv that divides H",
        "causal",
        "scale",
        "stat sum, max, count_above, incoherence",
        "threshold",
    )
}
SUPPORT["gradients"] = {"cpu": "no", "cuda": "no"}

TABLE = OpTable(
    op="attention_block_scores",
    cases=(*cases_of(OPTIONS), *(_bench_case(64, stat) for stat in ("sum", "count_above", "incoherence"))),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    variants=(_variant(EAGER, _eager, peer=True), _variant(OURS, run, peer=False)),
    goals=tuple(
        Goal(_bench_case(64, stat).name, "forward", OURS, EAGER, 4.0) for stat in ("sum", "count_above", "incoherence")
    ),
    support=SUPPORT,
)
