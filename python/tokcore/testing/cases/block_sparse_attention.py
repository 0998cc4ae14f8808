"""Case table of ``block_sparse_attention``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.block_mask import BlockMask
from tokcore.reference.block_sparse_attention import attend, scores, visible_elements
from tokcore.reference.block_sparse_attention import block_sparse_attention as reference_attention
from tokcore.testing.cases._attention import (
    attention_tensors,
    cases_of,
    is_large,
    random_mask,
    sampled,
    sampled_places,
    structured_mask,
)
from tokcore.testing.cases._block_sparse_bench import bench_cases, bench_goals, bench_variants
from tokcore.testing.cases._classifier import with_gradients
from tokcore.testing.cases._sources import random_source
from tokcore.testing.table import Case, Inputs, OpTable, Outputs

OPTIONS: dict[str, dict[str, Any]] = {
    "causal": {"causal": True},
    "causal-128": {"causal": True, "block": (128, 128)},
    "block-128x64": {"block": (128, 64)},
    "block-64x128": {"block": (64, 128)},
    "block-128": {"block": (128, 128)},
    "all-kept": {"density": 1.0},
    "sparse": {"density": 0.1},
    "hole": {"hole": True},
    "hole-causal": {"hole": True, "causal": True},
    "one-mask": {"mask_heads": (1, 1)},
    "mask-per-batch": {"mask_heads": (2, 1), "B": 2},
    "scale": {"scale": 0.3},
    "sharp": {"sharp": 8.0},
    "strided": {"strided": True},
    "frozen-q": {"grad": ("k", "v")},
    "frozen-kv": {"grad": ("q",)},
    "frozen-v": {"grad": ("q", "k")},
}


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Tensors and options by argument name, and ``upstream``: a gradient for each output."""
    p = case.parameters
    inputs = attention_tensors(case, device, seed)
    inputs["block_mask"] = random_mask(case, device, seed + 1)
    inputs |= {name: p[name] for name in ("causal", "scale") if name in p}
    if case.timed and p["density"] < 1.0:
        inputs["structured_mask"] = structured_mask(case, device)
    for name in p.get("grad", ("q", "k", "v")):
        inputs[name].requires_grad_()
    inputs["upstream"] = {}
    if not p.get("training", True):
        return inputs
    generator = random_source(case, device, seed + 2)
    shape = (p["B"], p["H"], p["M"])
    out = torch.randn(*shape, p["D"], generator=generator, device=generator.device)
    inputs["upstream"]["out"] = out.to(p["dtype"]).to(device)
    if "verify" in case.tags:
        inputs["upstream"]["lse"] = torch.randn(shape, generator=generator).to(device)
    return inputs


def _arguments(given: Inputs) -> Inputs:
    return {name: value for name, value in given.items() if name not in ("upstream", "structured_mask")}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""

    def call(given: Inputs) -> Outputs:
        out, lse = tokcore.block_sparse_attention(**_arguments(given), return_lse=True)
        return {"out": out, "lse": lse}

    return with_gradients(call, inputs)


def reference(inputs: Inputs) -> Outputs:
    """fp64; of a large case some rows of the result."""
    if is_large(inputs["q"], inputs["k"]):
        return _some_rows(**_arguments(inputs))

    def call(given: Inputs) -> Outputs:
        return reference_attention(**_arguments(given))._asdict()

    return with_gradients(call, {name: _double(value) for name, value in inputs.items()})


def _some_rows(
    q: Tensor, k: Tensor, v: Tensor, block_mask: BlockMask, causal: bool = False, scale: float | None = None
) -> Outputs:
    q, k, v = (x.detach() for x in (q, k, v))
    heads, rows = sampled_places(q)
    dense = block_mask.to_dense().expand(q.size(0), q.size(1), -1, -1)[:, heads][:, :, rows // block_mask.block[0]]
    visible = dense.repeat_interleave(block_mask.block[1], -1)[..., : k.size(2)]
    if causal:
        keys = torch.arange(k.size(2), device=q.device)
        visible = visible & (keys <= rows.unsqueeze(1) + k.size(2) - q.size(2))
    shared = heads // (q.size(1) // k.size(1))
    return {"out": attend(scores(q[:, heads][:, :, rows], k[:, shared], visible, scale), v[:, shared]).out}


def _double(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().double().requires_grad_(value.requires_grad)
    return value


def composition(inputs: Inputs) -> Outputs:
    """Matrix products in the inputs' dtype, the softmax between them in fp32, differentiated by autograd."""

    def call(given: Inputs) -> Outputs:
        q, k, v = given["q"], given["k"], given["v"]
        visible = visible_elements(given["block_mask"], (q.size(2), k.size(2)), given.get("causal", False), q.device)
        group = q.size(1) // k.size(1)
        scale = given.get("scale", 1.0 / math.sqrt(q.size(-1)))
        z = (q @ k.repeat_interleave(group, 1).transpose(-1, -2)).float() * scale
        z = z.masked_fill(~visible, -math.inf)
        empty = ~visible.any(-1).expand(z.shape[:-1])
        z = z.masked_fill(empty.unsqueeze(-1), 0.0)
        weights = z.softmax(-1).masked_fill(empty.unsqueeze(-1), 0.0).to(v.dtype)
        out = weights @ v.repeat_interleave(group, 1)
        return {"out": out, "lse": z.logsumexp(-1).masked_fill(empty, -math.inf)}

    return with_gradients(call, inputs)


SUPPORT = {
    option: {"cpu": "yes", "cuda": "yes"}
    for option in (
        "float32, bfloat16, float16",
        "blocks 64x64, 128x64, 64x128, 128x128",
        "head sizes 32 to 256",
        "Hkv that divides H",
        "ragged lengths",
        "causal",
        "scale",
        "return_lse",
        "gradients of q, k, v",
    )
}
SUPPORT["second derivatives"] = {"cpu": "no", "cuda": "no"}
SUPPORT["torch.func transforms"] = {"cpu": "no", "cuda": "no"}

TABLE = OpTable(
    op="block_sparse_attention",
    cases=(*cases_of(OPTIONS), *bench_cases()),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    sampled=sampled,
    variants=bench_variants(),
    goals=bench_goals(),
    support=SUPPORT,
)
