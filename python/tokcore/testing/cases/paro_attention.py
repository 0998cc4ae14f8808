"""Case table of ``paro_attention``."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.reference import paro_attention as meaning
from tokcore.testing.cases._attention import is_large, random_mask, sampled, sampled_places, structured_mask
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases._paro_bench import bench_cases, bench_goals, bench_variants
from tokcore.testing.cases._sources import random_source
from tokcore.testing.table import Case, Inputs, OpTable, Outputs

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
    if parameters.get("one_mask"):
        parameters["mask_heads"] = (1, 1)
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


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Tensors and options by argument name."""
    p = case.parameters
    generator = random_source(case, device, seed)
    home, (N, D) = generator.device, (p["N"], p["D"])

    def heads(count: int) -> Tensor:
        if p.get("strided"):
            wide = torch.randn(p["B"], N, count, D + 8, generator=generator, device=home)
            return wide.to(p["dtype"]).to(device)[..., :D].transpose(1, 2)
        return torch.randn(p["B"], count, N, D, generator=generator, device=home).to(p["dtype"]).to(device)

    q, k, v = heads(p["H"]) * p.get("sharp", 1.0), heads(p["Hkv"]), heads(p["Hkv"])
    if "outliers" in p:  # one channel, the same in all keys
        k = k.clone()
        k[..., D // 3] += p["outliers"]
    codes = torch.randint(0, 6, (p["Hkv"],), generator=generator, device=home).tolist()
    mask = structured_mask(case, device) if p.get("structured") else random_mask(case, device, seed + 1)
    inputs: Inputs = {"q": q, "k": k, "v": v, "block_mask": mask, "permutation": codes, "grid": p["grid"]}
    if "orders" in p:
        inputs["permutation"] = [p["orders"]] * p["Hkv"]
    inputs |= {name: p[name] for name in ("text", "qk", "pv", "rope_pairs", "smooth_k", "scale") if name in p}
    if "rope" in p:
        rows = math.prod(p["grid"]) if p.get("rope_rows") == "grid" else N
        width = D if p["rope"] == "channels" else D // 2
        angles = 6.0 * torch.rand(rows, width, generator=generator, device=home)
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


_PREPARED = ("q", "k", "v", "permutation", "grid", "text", "rope", "rope_pairs", "qk", "pv", "smooth_k")


def _meaning(inputs: Inputs, round_weights: bool, dtype: torch.dtype) -> Outputs:
    p = meaning.prepare(**{name: inputs[name] for name in _PREPARED if name in inputs})
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
    """The codes by their fp32 rules, attention over them in fp64; of a large case some rows of the result."""
    if is_large(inputs["q"], inputs["k"]):
        return _some_rows(inputs)
    return _meaning(inputs, False, torch.float64)


def _some_rows(inputs: Inputs) -> Outputs:
    """The places of some tokens in the order of their head, and attention of these rows alone."""
    p = meaning.prepare(**{name: inputs[name] for name in _PREPARED if name in inputs})
    q, mask = inputs["q"], meaning.kept_blocks(inputs["block_mask"], inputs["text"])
    heads, tokens = sampled_places(q)
    places = p.order[heads].argsort(-1)[:, tokens]
    dense = mask.to_dense().expand(q.size(0), q.size(1), -1, -1)[:, heads]
    rows = (places // mask.block[0])[None, :, :, None].expand(q.size(0), -1, -1, dense.size(-1))
    visible = dense.gather(2, rows).repeat_interleave(mask.block[1], -1)[..., : q.size(2)]
    index, shared = places[None, :, :, None], heads // (q.size(1) // inputs["k"].size(1))

    def of_rows(x: Tensor) -> Tensor:
        return x if x.dim() == 1 else x[:, heads].gather(2, index.expand(x.size(0), -1, -1, x.size(-1)))

    def of_keys(x: Tensor) -> Tensor:
        return x if x.dim() == 1 else x[:, shared]

    some = meaning.Prepared(
        of_rows(p.q),
        of_rows(p.q_scale),
        of_keys(p.k),
        of_keys(p.k_scale),
        of_keys(p.v),
        of_keys(p.v_scale),
        p.k_mean[:, shared],
        of_rows(p.mean_score.unsqueeze(-1)).squeeze(-1),
        torch.arange(tokens.numel(), device=q.device).expand(heads.numel(), -1),  # as they come
    )
    scale = inputs.get("scale", 1.0 / math.sqrt(q.size(-1)))
    return {"out": meaning.attend_prepared(some, visible, scale).out}


def composition(inputs: Inputs) -> Outputs:
    """The same in fp32, weights rounded as the formats say (to 8 bits, or to bf16), the result to the dtype."""
    bytes_ = inputs["pv"] in ("int8", "int4")
    outputs = _meaning(inputs, bytes_, torch.float32 if bytes_ else torch.bfloat16)
    return {**outputs, "out": outputs["out"].to(inputs["q"].dtype)}


SUPPORT = {
    option: {"cpu": "yes", "cuda": "yes"}
    for option in (
        "float32, bfloat16, float16",
        "blocks 64x64, 128x64, 64x128, 128x128",
        "head sizes 32 to 256",
        "orders FHW, FWH, HWF, HFW, WHF, WFH",
        "text before and after",
        "rope: interleaved, half; tables [N or F*H*W, D or D/2]",
        "smooth_k",
        "scale",
        "return_lse",
    )
}
SUPPORT |= {
    "Hkv that divides H": {"cpu": "yes", "cuda": "yes: up to 1024 key heads"},
    "qk int8": {
        "cpu": "yes: AMX int8 tiles; fp32 arithmetic below AMX",
        "cuda": "yes: int8 mma.sync, exact sums",
    },
    "qk int4": {
        "cpu": "yes: stored in 4 bits, computed as int8",
        "cuda": "yes: stored in 4 bits, computed as int8",
    },
    "qk bf16": {"cpu": "yes: AMX bf16 tiles; fp32 arithmetic below AMX", "cuda": "yes: bf16 mma.sync"},
    "pv int8": {
        "cpu": "yes: AMX int8 tiles; fp32 arithmetic below AMX",
        "cuda": "yes: int8 mma.sync, exact sums of 64 keys",
    },
    "pv int4": {
        "cpu": "yes: stored in 4 bits, computed as int8",
        "cuda": "yes: stored in 4 bits, computed as int8",
    },
    "pv fp8": {
        "cpu": "yes: stored as e4m3, computed as bf16",
        "cuda": "yes: stored as e4m3, computed as bf16",
    },
    "pv bf16": {"cpu": "yes: AMX bf16 tiles; fp32 arithmetic below AMX", "cuda": "yes: bf16 mma.sync"},
    "gradients": {"cpu": "no", "cuda": "no"},
}

TABLE = OpTable(
    op="paro_attention",
    cases=(*_verify_cases(), *bench_cases(_case)),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    sampled=sampled,
    variants=bench_variants(),
    goals=bench_goals(),
    support=SUPPORT,
)
