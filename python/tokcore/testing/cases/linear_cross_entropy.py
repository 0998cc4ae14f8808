"""Case table of ``linear_cross_entropy``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.reference.linear_cross_entropy import linear_cross_entropy as reference_loss
from tokcore.reference.linear_cross_entropy import loss_of_logits
from tokcore.testing.cases._classifier import (
    classifier_tensors,
    composed_logits,
    leading_shape,
    option_names,
    verify_cases,
    with_gradients,
)
from tokcore.testing.cases._classifier_bench import bench_cases, loss_goals, loss_variants
from tokcore.testing.table import Case, Inputs, OpTable, Outputs

OPTIONS: dict[str, dict[str, Any]] = {
    "bias": {"bias": "same"},
    "bias-fp32": {"bias": "fp32"},
    "softcap": {"softcap": 3.0},
    "temperature": {"temperature": 0.7},
    "smoothing": {"label_smoothing": 0.1},
    "z-loss": {"z_loss": 0.01},
    "class-weight": {"class_weight": True},
    "token-weight": {"token_weight": True},
    "ignored": {"ignored": 0.3},
    "shift": {"shift": 1, "batch": 3},
    "none": {"reduction": "none"},
    "mean": {"reduction": "mean"},
    "entropy": {"return_entropy": True},
    "filter": {"filter_eps": 2.0**-9},
    "frozen-e": {"grad": ("c", "bias")},
    "frozen-c": {"grad": ("e", "bias")},
    "chunked": {"strategy": "chunked"},
}
# Per-token results, entropy and the filter belong to the recompute strategy.
_NOT_CHUNKED = ("return_entropy", "filter_eps")
_LOSS = ("class_weight", "token_weight", "label_smoothing", "z_loss", "return_entropy", "filter_eps")
_LOGITS = ("softcap", "temperature")
_PASSED = ("reduction", "shift", "label_smoothing", "z_loss", "return_entropy", "filter_eps", *_LOGITS)


def _valid(case: Case) -> bool:
    p = case.parameters
    too_short = "shift" in p and p["shift"] >= leading_shape(p)[-1]
    undefined = "filter_eps" in p and "label_smoothing" in p and "softcap" in p
    per_token = "strategy" in p and (p.get("reduction") == "none" or any(name in p for name in _NOT_CHUNKED))
    return not too_short and not undefined and not per_token


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Tensors and options by argument name, and ``upstream``: a gradient for each output."""
    p = case.parameters
    inputs = classifier_tensors(case, device, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    shape, V = inputs["targets"].shape, p["V"]
    if "ignored" in p:
        inputs["targets"][torch.rand(shape, generator=generator).to(device) < p["ignored"]] = -100
    if p.get("class_weight"):
        inputs["class_weight"] = torch.rand(V, generator=generator).to(device)
    if p.get("token_weight"):
        inputs["token_weight"] = torch.randn(shape, generator=generator).to(device).requires_grad_()
    inputs |= {"reduction": "sum" if "verify" in case.tags else "mean", "filter_eps": None}
    inputs |= {name: p[name] for name in _PASSED if name in p}
    offset = p.get("shift", 0)
    per_token = torch.Size((*shape[:-1], shape[-1] - offset))
    if "strategy" in p:
        inputs["strategy"] = p["strategy"]
        inputs["workspace_bytes"] = -(-V // 32) * 32 * 32 * 4  # chunks of 32 positions: several in most cases
        if "token_weight" in inputs:
            inputs["token_weight"].requires_grad_(False)
    if "verify" not in case.tags:
        inputs["upstream"] = {"loss": torch.ones((), device=device)}  # what loss.backward() gives
        return inputs
    shapes = {"loss": per_token if inputs["reduction"] == "none" else torch.Size(()), "lse": per_token}
    if p.get("return_entropy"):
        shapes["entropy"] = per_token
    if "strategy" in p:
        del shapes["lse"]
    inputs["upstream"] = {name: torch.randn(s, generator=generator).to(device) for name, s in shapes.items()}
    return inputs


def run(inputs: Inputs) -> Outputs:
    """tokcore."""

    def call(given: Inputs) -> Outputs:
        arguments = {name: value for name, value in given.items() if name != "upstream"}
        results = tokcore.linear_cross_entropy(**arguments, return_lse="strategy" not in given)
        named = zip(("loss", "lse", "entropy"), results if isinstance(results, tuple) else (results,), strict=False)
        return dict(named)

    return with_gradients(call, inputs)


def _named(result: tuple[Tensor, ...], inputs: Inputs) -> Outputs:
    """What :func:`run` returns of loss, lse and entropy."""
    count = 1 if "strategy" in inputs else 3 if inputs.get("return_entropy") else 2
    return dict(zip(("loss", "lse", "entropy")[:count], result, strict=False))


def reference(inputs: Inputs) -> Outputs:
    """fp64."""

    def call(given: Inputs) -> Outputs:
        ours = ("upstream", "strategy", "workspace_bytes")
        arguments = {name: value for name, value in given.items() if name not in ours}
        return _named(reference_loss(**arguments), given)

    return with_gradients(call, {k: _double(v) for k, v in inputs.items()})


def _double(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def composition(inputs: Inputs) -> Outputs:
    """A matrix product in the inputs' dtype, everything after it in fp32, differentiated by autograd."""

    def call(given: Inputs) -> Outputs:
        offset = int(given.get("shift", 0))
        e, targets, options = given["e"], given["targets"], option_names(given, _LOSS)
        if offset:
            e, targets = e[..., : e.size(-2) - offset, :], targets[..., offset:]
            if "token_weight" in options:
                options["token_weight"] = options["token_weight"][..., offset:]
        z = composed_logits(e, given["c"], given.get("bias"), **option_names(given, _LOGITS))
        return _named(loss_of_logits(z, targets, -100, given["reduction"], **options), given)

    return with_gradients(call, inputs)


SUPPORT = {
    option: {"cpu": "yes", "cuda": "yes"}
    for option in (
        "float32, bfloat16, float16",
        "bias",
        "ignore_index",
        "softcap",
        "reduction",
        "shift",
        "return_lse",
        "return_entropy",
        "filter_eps",
        "class_weight",
        "token_weight",
        "temperature",
        "label_smoothing",
        "z_loss",
        "return_filter_rate",
        "strategy, workspace_bytes",
    )
}
SUPPORT["strategy='chunked' with the filter, per-token results or a gradient of token_weight"] = {
    "cpu": "no: use 'recompute'",
    "cuda": "no: use 'recompute'",
}
SUPPORT["filter_eps with label_smoothing and softcap together"] = {"cpu": "no: use None", "cuda": "no: use None"}
SUPPORT["second derivatives"] = {"cpu": "no", "cuda": "no"}
SUPPORT["torch.func transforms"] = {"cpu": "no", "cuda": "no"}

TABLE = OpTable(
    op="linear_cross_entropy",
    cases=(*filter(_valid, verify_cases(OPTIONS)), *bench_cases()),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    variants=loss_variants(),
    goals=loss_goals(),
    support=SUPPORT,
)
