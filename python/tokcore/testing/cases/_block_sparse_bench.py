"""What ``tokcore bench --op block_sparse_attention`` times, and the goals of sparse attention in bf16."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokcore
from tokcore.block_mask import BlockMask
from tokcore.testing.cases import _flashinfer
from tokcore.testing.cases._attention import attention_flops, case_name, kept_columns, shape_parameters
from tokcore.testing.cases._sources import H200
from tokcore.testing.table import AnyGoal, Case, Goal, Inputs, RateGoal, Variant

FORWARD, TRAINING = "forward", "forward+backward"
SDPA, FLEX = "F.scaled_dot_product_attention (dense)", "flex_attention (compiled, same blocks)"
FLASHINFER = "FlashInfer VariableBlockSparseAttentionWrapper"
OURS, OURS_DENSE, STRUCTURED = "tokcore", "tokcore, every block kept", "tokcore, structured mask"
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
_MAIN, _SWEEP = (1, 4, 4, 4096, 4096), (1, 16, 16, 16384, 16384)  # B, H, Hkv, M, N on a CPU and on a GPU
# Layers of models: their shape on a GPU, two heads of it on a CPU.
LAYERS = {
    "Flux": (1, 24, 4608, 128),
    "CogVideoX": (2, 48, 17776, 64),
    "Wan 480p": (1, 40, 32760, 128),
    "Wan 720p": (1, 40, 75600, 128),
}


def _case(
    sizes: tuple[int, ...], D: int, density: float, tags: set[str], dtype: torch.dtype = torch.bfloat16, **extra: Any
) -> Case:
    shape = (*sizes, D)
    block, layer = extra.get("block", (64, 64)), extra.pop("layer", None)
    labels = ["dense" if density == 1.0 else f"density={density}"]
    labels += [f"block={block[0]}"] if block != (64, 64) else []
    labels += [layer] if layer is not None else []
    parameters = {**shape_parameters(shape), "dtype": dtype, "density": density, **extra}
    return Case(case_name(shape, dtype, ",".join(labels)), parameters, frozenset(tags))


def _main(D: int, density: float, dtype: torch.dtype = torch.bfloat16, **extra: Any) -> Case:
    tags = {"bench"} if dtype == torch.bfloat16 and "block" not in extra else {"large"}
    return _case(_MAIN, D, density, tags, dtype, **extra)


def _sweep(D: int, density: float, block: int) -> Case:
    """On a GPU; gradients where they say most, at a third of the blocks and all of them."""
    extra: dict[str, Any] = {} if block == 64 else {"block": (block, block)}
    return _case(_SWEEP, D, density, {"bench-cuda"}, training=block == 64 and density in (1.0, 0.3), **extra)


def bench_cases() -> tuple[Case, ...]:
    """Dense and sparse, blocks of 64 and 128, heads of 64 and 128; layers of models that make pictures and videos."""
    bf16, fp32 = torch.bfloat16, torch.float32
    layers = []
    for layer, (B, H, N, D) in LAYERS.items():
        fields: dict[str, Any] = {"layer": layer, "training": False}
        if layer != "Wan 720p":
            layers.append(_case((1, 2, 2, N, N), D, 0.3, {"large"}, **fields))
        if layer in ("CogVideoX", "Wan 720p"):
            layers.append(_case((B, H, H, N, N), D, 0.3, {"bench-cuda"}, **fields))
    return (
        *(_main(D, density) for D in (64, 128) for density in (1.0, 0.3, 0.1)),
        *(_main(D, 0.3, bf16, block=(128, 128)) for D in (64, 128)),
        *(_main(D, density, fp32) for D in (64, 128) for density in (1.0, 0.3)),
        *(_sweep(D, density, block) for D in (64, 128) for block in (64, 128) for density in (1.0, 0.5, 0.3, 0.1)),
        *layers,
    )


def _prepare(make: Callable[[Inputs], Attend], measure: str, same: bool) -> Callable[[Case, Inputs], Callable[[], Any]]:
    """``same``: the mask is the reference's; what another mask gives has other names and is not compared."""

    def prepare(case: Case, inputs: Inputs) -> Callable[[], Any]:
        prefix = "" if same or case.parameters.get("density") == 1.0 else "another mask's "
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


def _dense(_: Inputs) -> Attend:
    return F.scaled_dot_product_attention


def _ours(name: str) -> Callable[[Inputs], Attend]:
    return lambda inputs: lambda q, k, v: tokcore.block_sparse_attention(q, k, v, inputs[name])


def _ours_dense(inputs: Inputs) -> Attend:
    given: BlockMask = inputs["block_mask"]
    mask = BlockMask.full(given.shape, given.block, given.device)
    return lambda q, k, v: tokcore.block_sparse_attention(q, k, v, mask)


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


def _flex(inputs: Inputs) -> Attend:
    from torch.nn.attention import flex_attention as flex

    mask: BlockMask = inputs["block_mask"]
    dense = mask.to_dense()
    counts, columns = dense.sum(-1, dtype=torch.int32), dense.int().argsort(dim=-1, descending=True, stable=True).int()
    none = torch.zeros_like(counts)
    blocks = flex.BlockMask.from_kv_blocks(
        none, torch.zeros_like(columns), counts, columns, BLOCK_SIZE=mask.block, seq_lengths=mask.shape
    )
    options: dict[str, Any] = {"block_mask": blocks}
    if mask.device.type == "cuda" and min(mask.block) < 128:  # its own tiles have to divide the mask's blocks
        tiles = {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_M1": 32, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 32}
        options["kernel_options"] = tiles
    return lambda q, k, v: _compiled_flex()(q, k, v, **options)


def _is_dense(case: Case) -> str | None:
    return "the mask of this case keeps every block" if case.parameters.get("density") == 1.0 else None


def _applies(measure: str, structured: bool) -> Callable[[Case], bool]:
    def applies(case: Case) -> bool:
        p = case.parameters
        wanted = measure == FORWARD or p.get("training", True)
        return wanted and not (structured and (p.get("density") == 1.0 or not case.timed))

    return applies


def _variant(
    name: str, make: Callable[[Inputs], Attend], measure: str = FORWARD, dense: bool = False, **fields: Any
) -> Variant:
    structured = name == STRUCTURED
    prepare = _prepare(make, measure, not dense and not structured)
    flops = attention_flops(4.0 if measure == FORWARD else 14.0, dense)
    return Variant(name, measure, prepare, flops=flops, applies=_applies(measure, structured), **fields)


def bench_variants() -> tuple[Variant, ...]:
    """Peers first. FlexAttention has gradients on a GPU alone."""
    own: dict[str, Any] = {"peer": False}
    return (
        _variant(SDPA, _dense, dense=True),
        _variant(FLEX, _flex),
        Variant(
            FLASHINFER,
            FORWARD,
            _flashinfer.block_sparse("block_mask"),
            unavailable=_flashinfer.no_block_sparse,
            flops=attention_flops(4.0, False),
            backends=("cuda",),
        ),
        _variant(OURS_DENSE, _ours_dense, dense=True, unavailable=_is_dense, **own),
        _variant(OURS, _ours("block_mask"), **own),
        _variant(STRUCTURED, _ours("structured_mask"), **own),
        _variant(SDPA, _dense, TRAINING, dense=True),
        _variant(FLEX, _flex, TRAINING, backends=("cuda",)),
        _variant(OURS, _ours("block_mask"), TRAINING, **own),
        _variant(STRUCTURED, _ours("structured_mask"), TRAINING, **own),
    )


def bench_goals() -> tuple[AnyGoal, ...]:
    """Over SDPA and over our own dense attention on a CPU; executed rates and scaling with density on an H200."""
    dense64, dense128 = _main(64, 1.0).name, _main(128, 1.0).name
    goals: list[AnyGoal] = [Goal(dense64, FORWARD, OURS, SDPA, 2.0, 3.0), Goal(dense128, FORWARD, OURS, SDPA, 1.7, 2.5)]
    for D in (64, 128):
        for density, share in ((0.3, 0.92), (0.1, 0.85)):
            kept = kept_columns(_MAIN[4] // 64, density) / (_MAIN[4] // 64)
            sparse = _main(D, density).name
            goals += [Goal(sparse, FORWARD, name, OURS_DENSE, share / kept) for name in (OURS, STRUCTURED)]
        goals.append(Goal(_main(D, 0.3).name, FORWARD, OURS, FLEX, 2.0))
    for block, rate, stretch in ((64, 500e12, 600e12), (128, 620e12, None)):
        goals.append(RateGoal(_sweep(128, 1.0, block).name, FORWARD, OURS, H200, rate, stretch))
        names = (OURS, STRUCTURED)
        goals += [RateGoal(_sweep(128, 0.3, block).name, FORWARD, name, H200, rate, stretch) for name in names]
    for D in (64, 128):
        for block in (64, 128):
            columns = _SWEEP[4] // block
            for density, share in ((0.5, 0.95), (0.3, 0.95), (0.1, 0.9)):
                ratio = share * columns / kept_columns(columns, density)
                sparse = _sweep(D, density, block).name
                goals += [Goal(sparse, FORWARD, v, OURS_DENSE, ratio, backend="cuda") for v in (OURS, STRUCTURED)]
    return tuple(goals)
