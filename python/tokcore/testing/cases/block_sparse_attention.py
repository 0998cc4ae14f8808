"""Case table of ``block_sparse_attention``."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokcore
from tokcore.block_mask import BlockMask
from tokcore.reference.block_sparse_attention import block_sparse_attention as reference_attention
from tokcore.reference.block_sparse_attention import visible_elements
from tokcore.testing.cases._attention import (
    attention_flops,
    attention_tensors,
    case_name,
    cases_of,
    kept_columns,
    random_mask,
    shape_parameters,
)
from tokcore.testing.cases._classifier import with_gradients
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, Variant

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
    for name in p.get("grad", ("q", "k", "v")):
        inputs[name].requires_grad_()
    generator = torch.Generator().manual_seed(seed + 2)
    shape = (p["B"], p["H"], p["M"])
    out = torch.randn(*shape, p["D"], generator=generator).to(p["dtype"]).to(device)
    inputs["upstream"] = {"out": out}
    if "verify" in case.tags:
        inputs["upstream"]["lse"] = torch.randn(shape, generator=generator).to(device)
    return inputs


def _arguments(given: Inputs) -> Inputs:
    return {name: value for name, value in given.items() if name != "upstream"}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""

    def call(given: Inputs) -> Outputs:
        out, lse = tokcore.block_sparse_attention(**_arguments(given), return_lse=True)
        return {"out": out, "lse": lse}

    return with_gradients(call, inputs)


def reference(inputs: Inputs) -> Outputs:
    """fp64."""

    def call(given: Inputs) -> Outputs:
        return reference_attention(**_arguments(given))._asdict()

    return with_gradients(call, {name: _double(value) for name, value in inputs.items()})


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


FORWARD, TRAINING = "forward", "forward+backward"
SDPA, FLEX = "F.scaled_dot_product_attention (dense)", "flex_attention (compiled, same blocks)"
OURS, OURS_DENSE = "tokcore", "tokcore, every block kept"


def _bench_case(D: int, density: float, dtype: torch.dtype, default: bool = True, **extra: Any) -> Case:
    shape = (1, 4, 4, 4096, 4096, D)
    name = "dense" if density == 1.0 else f"density={density}"
    label = case_name(shape, dtype, ",".join([name, *extra.pop("label", [])]))
    parameters = {**shape_parameters(shape), "dtype": dtype, "density": density, **extra}
    return Case(label, parameters, frozenset({"bench" if default else "large"}))


def _bench_cases() -> tuple[Case, ...]:
    bf16, fp32 = torch.bfloat16, torch.float32
    sparse = [_bench_case(D, density, bf16) for D in (64, 128) for density in (1.0, 0.3, 0.1)]
    large = {"block": (128, 128), "label": ["block=128"]}
    return (
        *sparse,
        *(_bench_case(D, 0.3, bf16, default=False, **large) for D in (64, 128)),
        *(_bench_case(D, density, fp32, default=False) for D in (64, 128) for density in (1.0, 0.3)),
    )


def _full_mask(inputs: Inputs) -> BlockMask:
    mask: BlockMask = inputs["block_mask"]
    return BlockMask.full(mask.shape, mask.block, mask.device)


def _prepare(
    make: Callable[[Inputs], Callable[[Tensor, Tensor, Tensor], Tensor]], measure: str, dense: bool
) -> Callable[[Case, Inputs], Callable[[], Any]]:
    def prepare(case: Case, inputs: Inputs) -> Callable[[], Any]:
        same = not dense or case.parameters.get("density") == 1.0  # as the reference; other names are not compared
        prefix = "" if same else "dense "
        attend = make(inputs)
        leaves = (inputs["q"], inputs["k"], inputs["v"])
        wanted = {f"{prefix}grad_{name}": inputs[name] for name in "qkv" if inputs[name].requires_grad}
        constants = tuple(x.detach() for x in leaves)  # FlexAttention refuses leaves on a CPU even without gradients

        def forward() -> dict[str, Tensor]:
            with torch.no_grad():
                return {f"{prefix}out": attend(*constants)}

        def training() -> dict[str, Tensor]:
            out = attend(*leaves)
            grads = torch.autograd.grad(out, list(wanted.values()), inputs["upstream"]["out"])
            return {f"{prefix}out": out.detach(), **dict(zip(wanted, grads, strict=True))}

        return forward if measure == FORWARD else training

    return prepare


def _dense(_: Inputs) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return F.scaled_dot_product_attention


def _ours(inputs: Inputs) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    return lambda q, k, v: tokcore.block_sparse_attention(q, k, v, inputs["block_mask"])


def _ours_dense(inputs: Inputs) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    mask = _full_mask(inputs)
    return lambda q, k, v: tokcore.block_sparse_attention(q, k, v, mask)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


def _flex(inputs: Inputs) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    from torch.nn.attention import flex_attention as flex

    mask: BlockMask = inputs["block_mask"]
    dense = mask.to_dense()
    counts, columns = dense.sum(-1, dtype=torch.int32), dense.int().argsort(dim=-1, descending=True, stable=True).int()
    none = torch.zeros_like(counts)
    blocks = flex.BlockMask.from_kv_blocks(
        none, torch.zeros_like(columns), counts, columns, BLOCK_SIZE=mask.block, seq_lengths=mask.shape
    )
    return lambda q, k, v: _compiled_flex()(q, k, v, block_mask=blocks)


def _is_dense(case: Case) -> str | None:
    return "the mask of this case keeps every block" if case.parameters.get("density") == 1.0 else None


def _variant(
    name: str,
    make: Callable[[Inputs], Callable[[Tensor, Tensor, Tensor], Tensor]],
    measure: str = FORWARD,
    dense: bool = False,
    **fields: Any,
) -> Variant:
    factor = 4.0 if measure == FORWARD else 14.0
    return Variant(name, measure, _prepare(make, measure, dense), flops=attention_flops(factor, dense), **fields)


def _goals() -> tuple[Goal, ...]:
    def name(D: int, density: float) -> str:
        return _bench_case(D, density, torch.bfloat16).name

    goals = [Goal(name(64, 1.0), FORWARD, OURS, SDPA, 2.0, 3.0), Goal(name(128, 1.0), FORWARD, OURS, SDPA, 1.7, 2.5)]
    for D in (64, 128):
        for density, share in ((0.3, 0.92), (0.1, 0.85)):
            kept = kept_columns(64, density) / 64
            goals.append(Goal(name(D, density), FORWARD, OURS, OURS_DENSE, share / kept))
        goals.append(Goal(name(D, 0.3), FORWARD, OURS, FLEX, 2.0))
    return tuple(goals)


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
    cases=(*cases_of(OPTIONS), *_bench_cases()),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    variants=(
        _variant(SDPA, _dense, dense=True),
        _variant(FLEX, _flex, backends=("cpu",)),
        _variant(OURS_DENSE, _ours_dense, dense=True, peer=False, unavailable=_is_dense),
        _variant(OURS, _ours, peer=False),
        _variant(SDPA, _dense, TRAINING, dense=True),
        _variant(OURS, _ours, TRAINING, peer=False),
    ),
    goals=_goals(),
    support=SUPPORT,
)
