"""Case table of ``paro_attention``."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokcore
from tokcore.block_mask import BlockMask
from tokcore.permutation import permutation_indices
from tokcore.reference import paro_attention as meaning
from tokcore.testing.cases._attention import attention_flops, kept_columns
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, Variant

# B, H, Hkv, grid, text, D: lengths 1, 63, 64, 65 and more, groups of 1 to 8, text before, after, both and none, head
# sizes that need padding.
SHAPES: tuple[tuple[int, int, int, tuple[int, int, int], tuple[int, int], int], ...] = (
    (1, 1, 1, (1, 1, 1), (0, 0), 32),
    (1, 2, 1, (3, 7, 3), (0, 0), 64),
    (2, 2, 2, (1, 8, 8), (0, 0), 40),
    (1, 4, 2, (4, 4, 4), (1, 0), 72),
    (1, 8, 1, (2, 5, 6), (0, 9), 32),
    (1, 2, 2, (5, 6, 13), (4, 7), 128),
    (1, 2, 1, (3, 8, 16), (0, 0), 80),
    (1, 1, 1, (9, 10, 11), (10, 0), 96),
    (1, 2, 1, (4, 8, 9), (0, 33), 256),
)
FORMATS = tuple(itertools.product(("int8", "int4", "bf16"), ("int8", "int4", "fp8", "bf16")))
OPTIONS: dict[str, dict[str, Any]] = {
    "rope": {"rope": "pairs"},
    "rope-half": {"rope": "pairs", "rope_pairs": "half"},
    "rope-wide": {"rope": "channels"},
    "rope-half-wide": {"rope": "channels", "rope_pairs": "half"},
    "rope-of-grid": {"rope": "pairs", "rope_rows": "grid"},
    "rough-k": {"smooth_k": False},
    "outlier-keys": {"outliers": 100.0},
    "block-128x64": {"block": (128, 64)},
    "block-64x128": {"block": (64, 128)},
    "block-128": {"block": (128, 128)},
    "all-kept": {"density": 1.0},
    "hole": {"hole": True},
    "one-mask": {"one_mask": True},
    "one-order": {"orders": 3},
    "scale": {"scale": 0.3},
    "sharp": {"sharp": 8.0},
    "strided": {"strided": True},
}


def _tokens(shape: tuple[Any, ...]) -> int:
    return int(math.prod(shape[3]) + sum(shape[4]))


def _case(shape: tuple[Any, ...], dtype: torch.dtype, formats: tuple[str, str], name: str, tags: set[str]) -> Case:
    B, H, Hkv, grid, text, D = shape
    N = _tokens(shape)
    label = f"B={B},H={H},Hkv={Hkv},N={N},D={D},{DTYPES[dtype]},qk={formats[0]},pv={formats[1]}"
    parameters = {"B": B, "H": H, "Hkv": Hkv, "M": N, "N": N, "D": D, "grid": grid, "text": text, "dtype": dtype}
    parameters |= {"qk": formats[0], "pv": formats[1], **OPTIONS.get(name, {})}
    return Case(label + (f",{name}" if name else ""), parameters, frozenset(tags))


def _verify_cases() -> tuple[Case, ...]:
    """Every pair of formats with three of the shapes, and every option with three pairs and shapes, dtypes in turn."""
    cases: dict[str, Case] = {}
    dtypes = tuple(DTYPES)
    plans = [(formats, "") for formats in FORMATS for _ in range(3)]
    plans += [(FORMATS[(5 * n + 4 * turn) % len(FORMATS)], name) for n, name in enumerate(OPTIONS) for turn in range(3)]
    plans += [(("int8", "int8"), name) for name in OPTIONS]
    for index, (formats, name) in enumerate(plans):
        shape = SHAPES[(2 * index + index // len(SHAPES)) % len(SHAPES)]
        case = _case(shape, dtypes[index % len(dtypes)], formats, name, {"verify", "quick"})
        cases[case.name] = case
    return tuple(cases.values())


def _random_mask(case: Case, device: str, seed: int) -> BlockMask:
    p = case.parameters
    N, block = p["N"], p.get("block", (64, 64))
    rows, columns = -(-N // block[0]), -(-N // block[1])
    batch, heads = (1, 1) if p.get("one_mask") else (p["B"], p["H"])
    order = torch.rand(batch, heads, rows, columns, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    dense = order < kept_columns(columns, p.get("density", 0.6))
    if p.get("hole"):
        dense[..., :1, :] = False
    return BlockMask.from_dense(dense, block, shape=(N, N)).to(device)


def _structured_mask(case: Case, device: str) -> BlockMask:
    """A band along the diagonal, as calibration finds it, of the same number of blocks a row as a random mask."""
    p = case.parameters
    columns = -(-p["N"] // 64)
    kept = kept_columns(columns, p["density"])
    rows = torch.arange(columns).unsqueeze(1)
    first = (rows - kept // 2).clamp(0, columns - kept)
    dense = (torch.arange(columns) >= first) & (torch.arange(columns) < first + kept)
    return BlockMask.from_dense(dense[None, None], shape=(p["N"], p["N"])).to(device)


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Tensors and options by argument name."""
    p = case.parameters
    generator = torch.Generator().manual_seed(seed)
    N, D = p["N"], p["D"]

    def heads(count: int) -> Tensor:
        if p.get("strided"):
            wide = torch.randn(p["B"], N, count, D + 8, generator=generator)
            return wide.to(p["dtype"]).to(device)[..., :D].transpose(1, 2)
        return torch.randn(p["B"], count, N, D, generator=generator).to(p["dtype"]).to(device)

    q, k, v = heads(p["H"]) * p.get("sharp", 1.0), heads(p["Hkv"]), heads(p["Hkv"])
    if "outliers" in p:  # one channel, the same in all keys
        k = k.clone()
        k[..., D // 3] += p["outliers"]
    codes = torch.randint(0, 6, (p["Hkv"],), generator=generator).tolist()
    mask = _structured_mask(case, device) if p.get("structured") else _random_mask(case, device, seed + 1)
    inputs: Inputs = {"q": q, "k": k, "v": v, "block_mask": mask, "permutation": codes, "grid": p["grid"]}
    if "orders" in p:
        inputs["permutation"] = [p["orders"]] * p["Hkv"]
    inputs |= {name: p[name] for name in ("text", "qk", "pv", "rope_pairs", "smooth_k", "scale") if name in p}
    if "rope" in p:
        rows = math.prod(p["grid"]) if p.get("rope_rows") == "grid" else N
        angles = 6.0 * torch.rand(rows, D if p["rope"] == "channels" else D // 2, generator=generator)
        inputs["rope"] = (angles.cos().to(device), angles.sin().to(device))
    return inputs


def run(inputs: Inputs) -> Outputs:
    """tokcore: the result and the codes and scales behind it."""
    out, lse = tokcore.paro_attention(**inputs, return_lse=True)
    options = {name: value for name, value in inputs.items() if name not in ("block_mask", "scale")}
    made = tokcore.paro_prepare(**options)
    outputs = {"out": out, "lse": lse}
    N, D = inputs["q"].size(2), inputs["q"].size(3)
    if made.qk == "int8":
        outputs |= {"q_codes": made.q_codes[:, :, :N, :D], "k_codes": made.k_codes[:, :, :N, :D]}
    if made.qk != "bf16":
        outputs |= {"q_scale_bits": made.q_scale[:, :, :N].view(torch.int32)}
        outputs |= {"k_scale_bits": made.k_scale.view(torch.int32)}
    if made.pv in ("int8", "fp8"):
        blocks = made.v_codes.view(torch.uint8)
        outputs |= {"v_codes": blocks.transpose(-1, -2).flatten(2, 3)[:, :, :N, :D]}
    return outputs


def _meaning(inputs: Inputs, round_weights: bool, dtype: torch.dtype) -> Outputs:
    names = ("q", "k", "v", "permutation", "grid", "text", "rope", "rope_pairs", "qk", "pv", "smooth_k")
    p = meaning.prepare(**{name: inputs[name] for name in names if name in inputs})
    scale = inputs.get("scale", 1.0 / math.sqrt(inputs["q"].size(-1)))
    visible = meaning.kept_elements(inputs["block_mask"], inputs["text"])
    result = meaning.attend_prepared(p, visible, scale, round_weights, dtype)
    outputs = {"out": result.out, "lse": result.lse}
    if inputs["qk"] == "int8":
        outputs |= {"q_codes": p.q.to(torch.int8), "k_codes": p.k.to(torch.int8)}
    if inputs["qk"] != "bf16":
        outputs |= {"q_scale_bits": p.q_scale.squeeze(-1).view(torch.int32)}
        outputs |= {"k_scale_bits": p.k_scale[:, :, :: meaning.GROUP].squeeze(-1).contiguous().view(torch.int32)}
    if inputs["pv"] == "int8":
        outputs["v_codes"] = p.v.to(torch.int8).view(torch.uint8)
    elif inputs["pv"] == "fp8":
        outputs["v_codes"] = p.v.to(torch.float8_e4m3fn).view(torch.uint8)
    return outputs


def reference(inputs: Inputs) -> Outputs:
    """The codes by their fp32 rules, attention over them in fp64."""
    return _meaning(inputs, False, torch.float64)


def composition(inputs: Inputs) -> Outputs:
    """The same in fp32, weights rounded as the formats say (to 8 bits, or to bf16), the result to the dtype."""
    bytes_ = inputs["pv"] in ("int8", "int4")
    outputs = _meaning(inputs, bytes_, torch.float32 if bytes_ else torch.bfloat16)
    return {**outputs, "out": outputs["out"].to(inputs["q"].dtype)}


CALL, KERNEL, PREPARE = "whole call", "attention alone", "prologue alone"
SDPA = "F.scaled_dot_product_attention (dense)"
BF16 = "tokcore.block_sparse_attention bf16 (same blocks)"
EAGER_ROPE, ROPE_ONLY = "eager PyTorch: RoPE alone", "tokcore: RoPE alone, to bf16"
OURS = "tokcore int8"


def _bench_case(D: int, density: float, structured: bool, pv: str = "int8", default: bool = True) -> Case:
    shape = (1, 4, 4, (16, 16, 16), (0, 0), D)
    case = _case(shape, torch.bfloat16, ("int8", pv), "", {"bench" if default else "large"})
    name = f"{case.name},density={density}," + ("structured" if structured else "random")
    parameters = {**case.parameters, "density": density, "structured": structured, "rope": "pairs"}
    return Case(name, parameters, case.tags)


def _bench_cases() -> tuple[Case, ...]:
    sparse = [_bench_case(D, d, s) for D in (64, 128) for d in (0.5, 0.3) for s in (False, True)]
    formats = [_bench_case(D, 0.3, False, pv, default=False) for D in (64, 128) for pv in ("int4", "fp8", "bf16")]
    return (*sparse, *formats)


def _variant(
    name: str, measure: str, make: Callable[[Inputs], Callable[[], Any]], dense: bool, **fields: Any
) -> Variant:
    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        call = make(inputs)

        def timed() -> Any:
            with torch.no_grad():
                return call()

        return timed

    flops = None if measure == PREPARE else attention_flops(4.0, dense)
    return Variant(name, measure, prepare, flops=flops, **fields)


def _dense(inputs: Inputs) -> Callable[[], Any]:
    return lambda: F.scaled_dot_product_attention(inputs["q"], inputs["k"], inputs["v"])


def _bf16_kernel(inputs: Inputs) -> Callable[[], Any]:
    return lambda: tokcore.block_sparse_attention(inputs["q"], inputs["k"], inputs["v"], inputs["block_mask"])


def _eager_call(inputs: Inputs) -> Callable[[], Any]:
    """What people compose: RoPE, gather, block-sparse attention in bf16, scatter."""
    order = torch.stack([permutation_indices(code, inputs["grid"]) for code in inputs["permutation"]])
    index = order[None, :, :, None].expand_as(inputs["k"])
    inverse = order.argsort(-1)[None, :, :, None].expand_as(inputs["k"])

    def call() -> Tensor:
        q, k = _eager_rope(inputs)
        q, k, v = (x.gather(2, index) for x in (q, k, inputs["v"]))
        return tokcore.block_sparse_attention(q, k, v, inputs["block_mask"]).gather(2, inverse)

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


def _goals() -> tuple[Goal, ...]:
    return tuple(
        Goal(_bench_case(D, 0.3, structured).name, CALL, OURS, BF16, 1.2)
        for D in (64, 128)
        for structured in (False, True)
    )


SUPPORT = {
    option: {"cpu": "yes", "cuda": "no: no CUDA kernel yet"}
    for option in (
        "float32, bfloat16, float16",
        "blocks 64x64, 128x64, 64x128, 128x128",
        "head sizes 32 to 256",
        "Hkv that divides H",
        "orders FHW, FWH, HWF, HFW, WHF, WFH",
        "text before and after",
        "rope: interleaved, half; tables [N or F*H*W, D or D/2]",
        "smooth_k",
        "scale",
        "return_lse",
    )
}
SUPPORT |= {
    "qk int8": {"cpu": "yes: AMX int8 tiles; fp32 arithmetic below AMX", "cuda": "no: no CUDA kernel yet"},
    "qk int4": {"cpu": "yes: stored in 4 bits, computed as int8", "cuda": "no: no CUDA kernel yet"},
    "qk bf16": {"cpu": "yes: AMX bf16 tiles; fp32 arithmetic below AMX", "cuda": "no: no CUDA kernel yet"},
    "pv int8": {"cpu": "yes: AMX int8 tiles; fp32 arithmetic below AMX", "cuda": "no: no CUDA kernel yet"},
    "pv int4": {"cpu": "yes: stored in 4 bits, computed as int8", "cuda": "no: no CUDA kernel yet"},
    "pv fp8": {"cpu": "yes: stored as e4m3, computed as bf16", "cuda": "no: no CUDA kernel yet"},
    "pv bf16": {"cpu": "yes: AMX bf16 tiles; fp32 arithmetic below AMX", "cuda": "no: no CUDA kernel yet"},
    "gradients": {"cpu": "no", "cuda": "no"},
}

TABLE = OpTable(
    op="paro_attention",
    cases=(*_verify_cases(), *_bench_cases()),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    variants=(
        _variant(SDPA, CALL, _dense, True),
        _variant(BF16, CALL, _bf16_kernel, False),
        _variant("RoPE, gather, block-sparse bf16, scatter", CALL, _eager_call, False),
        _variant(OURS, CALL, lambda inputs: lambda: tokcore.paro_attention(**inputs), False, peer=False),
        _variant(BF16, KERNEL, _bf16_kernel, False),
        _variant(OURS, KERNEL, _kernel, False, peer=False),
        _variant(EAGER_ROPE, PREPARE, lambda inputs: lambda: _eager_rope(inputs), False),
        _variant(
            ROPE_ONLY,
            PREPARE,
            lambda inputs: _prepared(inputs, qk="bf16", pv="bf16", permutation=0),
            False,
            peer=False,
        ),
        _variant(OURS, PREPARE, lambda inputs: _prepared(inputs), False, peer=False),
    ),
    goals=_goals(),
    support=SUPPORT,
)
