"""Case table of ``linear_logprobs``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.ops.linear_logprobs import LinearLogprobs
from tokcore.reference.linear_logprobs import linear_logprobs as reference_logprobs
from tokcore.reference.linear_logprobs import logprobs_of_logits
from tokcore.testing.cases._classifier import (
    classifier_tensors,
    composed_logits,
    option_names,
    verify_cases,
    with_gradients,
)
from tokcore.testing.cases._classifier_bench import bench_cases, logprobs_goals, logprobs_variants
from tokcore.testing.table import Case, Inputs, OpTable, Outputs

OPTIONS: dict[str, dict[str, Any]] = {
    "bias": {"bias": "same"},
    "bias-fp32": {"bias": "fp32"},
    "softcap": {"softcap": 3.0},
    "temperature": {"temperature": 0.7},
    "entropy": {"entropy": True},
    "gather": {"K": 5},
    "topk": {"topk": 3},
    "filter": {"filter_eps": 2.0**-9},
    "frozen-e": {"grad": ("c", "bias")},
    "frozen-c": {"grad": ("e", "bias")},
}
_AFTER = ("entropy", "gather", "topk", "filter_eps")
_LOGITS = ("softcap", "temperature")


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Tensors and options by argument name, and ``upstream``: a gradient for each real-valued output."""
    p = case.parameters
    inputs = classifier_tensors(case, device, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    shape, V = inputs["targets"].shape, p["V"]
    chosen, topk = min(p.get("K", 0), V), min(p.get("topk", 0), V)
    if "verify" not in case.tags:
        inputs["upstream"] = {"logprob": torch.full(shape, 1.0 / p["T"], device=device)}
        return inputs
    shapes = {"logprob": shape, "lse": shape}
    if p.get("entropy"):
        shapes["entropy"] = shape
    if chosen:
        inputs["gather"] = torch.randint(V, (*shape, chosen), generator=generator).to(device)
        shapes["gathered"] = inputs["gather"].shape
    if topk:
        inputs["topk"] = topk
        shapes["topk_values"] = torch.Size((*shape, topk))
    inputs |= {name: p[name] for name in ("entropy", "filter_eps", *_LOGITS) if name in p}
    inputs["upstream"] = {name: torch.randn(s, generator=generator).to(device) for name, s in shapes.items()}
    return inputs


def _named(result: LinearLogprobs) -> Outputs:
    # Indices are left out: where two logits differ by less than rounding, either order is right.
    return {k: v for k, v in result._asdict().items() if v is not None and v.is_floating_point()}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""

    def call(given: Inputs) -> Outputs:
        return _named(tokcore.linear_logprobs(**{k: v for k, v in given.items() if k != "upstream"}))

    return with_gradients(call, inputs)


def reference(inputs: Inputs) -> Outputs:
    """fp64."""

    def call(given: Inputs) -> Outputs:
        return _named(reference_logprobs(**{k: v for k, v in given.items() if k != "upstream"}))

    return with_gradients(call, {k: _double(v) for k, v in inputs.items()})


def _double(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def composition(inputs: Inputs) -> Outputs:
    """A matrix product in the inputs' dtype, everything after it in fp32, differentiated by autograd."""

    def call(given: Inputs) -> Outputs:
        z = composed_logits(given["e"], given["c"], given.get("bias"), **option_names(given, _LOGITS))
        return _named(logprobs_of_logits(z, given["targets"], **option_names(given, _AFTER)))

    return with_gradients(call, inputs)


SUPPORT = {
    option: {"cpu": "yes", "cuda": "yes"}
    for option in (
        "float32, bfloat16, float16",
        "bias",
        "softcap",
        "temperature",
        "entropy",
        "gather",
        "topk",
        "filter_eps",
    )
}
SUPPORT["second derivatives"] = {"cpu": "no", "cuda": "no"}
SUPPORT["torch.func transforms"] = {"cpu": "no", "cuda": "no"}

TABLE = OpTable(
    op="linear_logprobs",
    cases=(*verify_cases(OPTIONS), *bench_cases()),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    variants=logprobs_variants(),
    goals=logprobs_goals(),
    support=SUPPORT,
)
