"""Case table of ``attention_block_scores``."""

from __future__ import annotations

import math
from typing import Any

import torch

import tokcore
from tokcore.reference.attention_block_scores import attention_block_scores as reference_scores
from tokcore.reference.attention_block_scores import scores_of_logits
from tokcore.reference.block_sparse_attention import visible_elements
from tokcore.testing.cases._attention import (
    attention_tensors,
    cases_of,
    is_large,
    is_large_matrix,
)
from tokcore.testing.cases._block_scores_bench import bench_cases, bench_goals, bench_variants
from tokcore.testing.table import Case, Inputs, OpTable, Outputs

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
    """fp64; of a large case, which has neither ``causal`` nor ragged blocks, two rows of blocks of two heads."""
    q, k = inputs["q"], inputs["k"]
    bm = inputs.get("block", (64, 64))[0]
    if not is_large(q, k):
        return {"scores": reference_scores(**inputs)}
    heads, rows = _sampled_places(q.size(1), q.size(2) // bm)
    queries = torch.cat([torch.arange(row * bm, row * bm + bm) for row in rows]).to(q.device)
    shared = [head // (q.size(1) // k.size(1)) for head in heads]
    return {"scores": reference_scores(**inputs | {"q": q[:, heads][:, :, queries], "k": k[:, shared]})}


def sampled(outputs: Outputs) -> Outputs:
    """What the reference gives of a large result."""
    scores = outputs["scores"]
    if not is_large_matrix(scores.numel() * 64 * 64):
        return outputs
    heads, rows = _sampled_places(scores.size(1), scores.size(2))
    return {"scores": scores[:, heads][:, :, rows]}


def _sampled_places(num_heads: int, num_rows: int) -> tuple[list[int], list[int]]:
    return sorted({0, num_heads - 1}), sorted({0, num_rows - 1})


def composition(inputs: Inputs) -> Outputs:
    """A matrix product in the inputs' dtype, everything after it in fp32."""
    q, k = inputs["q"], inputs["k"]
    visible = visible_elements(None, (q.size(2), k.size(2)), inputs.get("causal", False), q.device)
    scale = inputs.get("scale", 1.0 / math.sqrt(q.size(-1)))
    z = (q @ k.repeat_interleave(q.size(1) // k.size(1), 1).transpose(-1, -2)).float() * scale
    z = z.masked_fill(~visible, -math.inf)
    block, stat = inputs.get("block", (64, 64)), inputs.get("stat", "sum")
    return {"scores": scores_of_logits(z, visible, block, stat, inputs.get("threshold", 1e-3))}


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
    cases=(*cases_of(OPTIONS), *bench_cases()),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    sampled=sampled,
    variants=bench_variants(run),
    goals=bench_goals(),
    support=SUPPORT,
)
