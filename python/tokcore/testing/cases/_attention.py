"""What the case tables of the attention ops share: inputs, the same-dtype scores, FLOPs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tokcore.block_mask import BlockMask
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases._sources import random_source
from tokcore.testing.table import Case, Inputs, Outputs

# B, H, Hkv, M, N, D: tiny and odd lengths, at the edges of tiles and blocks and one beside them, groups of 1, 2, 4 and
# 8, head sizes that need padding.
SHAPES = (
    (1, 1, 1, 1, 1, 32),
    (1, 2, 1, 63, 65, 64),
    (2, 2, 2, 64, 64, 40),
    (1, 4, 2, 65, 127, 72),
    (1, 1, 1, 128, 129, 128),
    (2, 4, 1, 31, 200, 80),
    (1, 1, 1, 300, 33, 96),
    (1, 2, 2, 193, 513, 64),
    (1, 8, 1, 40, 70, 32),
    (1, 1, 1, 5, 1000, 160),
    (1, 2, 1, 257, 320, 256),
)


def case_name(shape: tuple[int, ...], dtype: torch.dtype, name: str) -> str:
    """ "B=1,H=2,Hkv=1,M=63,N=65,D=64,bf16,causal"."""
    sizes = ",".join(f"{letter}={size}" for letter, size in zip(("B", "H", "Hkv", "M", "N", "D"), shape, strict=True))
    return f"{sizes},{DTYPES[dtype]}" + ("" if name == "plain" else f",{name}")


def shape_parameters(shape: tuple[int, ...]) -> dict[str, int]:
    """Sizes by letter."""
    return dict(zip(("B", "H", "Hkv", "M", "N", "D"), shape, strict=True))


def cases_of(options: Mapping[str, Mapping[str, Any]]) -> tuple[Case, ...]:
    """Every shape in every dtype without options, and every option with three of the shapes in each dtype."""
    cases: dict[str, Case] = {}
    for index, dtype in enumerate(DTYPES):
        plans: list[tuple[tuple[int, ...], str, Mapping[str, Any]]] = [(shape, "plain", {}) for shape in SHAPES]
        for number, (name, chosen) in enumerate(options.items()):
            plans += [(SHAPES[(3 * number + 4 * turn + index) % len(SHAPES)], name, chosen) for turn in range(3)]
        for shape, name, chosen in plans:
            sizes = (chosen.get("B", shape[0]), *shape[1:])
            label = case_name(sizes, dtype, name)
            parameters = {**shape_parameters(sizes), "dtype": dtype, **chosen}
            cases[label] = Case(label, parameters, frozenset({"verify", "quick"}))
    return tuple(cases.values())


def attention_tensors(case: Case, device: str, seed: int, *, values: bool = True) -> Inputs:
    """q, k and v of a case with scores of standard deviation 1, or ``sharp`` times that; ``strided`` ones are views."""
    p = case.parameters
    generator = random_source(case, device, seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device).to(p["dtype"]).to(device)

    def heads(count: int, length: int) -> Tensor:
        if p.get("strided"):  # [B, length, heads, D + 8] as a fused projection leaves it
            return drawn(p["B"], length, count, p["D"] + 8)[..., : p["D"]].transpose(1, 2)
        return drawn(p["B"], count, length, p["D"])

    q = heads(p["H"], p["M"]) * p.get("sharp", 1.0)
    inputs: Inputs = {"q": q, "k": heads(p["Hkv"], p["N"])}
    if values:
        inputs["v"] = heads(p["Hkv"], p["N"])
    return inputs


def random_mask(case: Case, device: str, seed: int) -> BlockMask:
    """Every row of blocks keeps the same share of them at random; a ``hole`` keeps nothing in the first row."""
    p = case.parameters
    block, shape = p.get("block", (64, 64)), (p["M"], p["N"])
    batch, heads = p.get("mask_heads", (p["B"], p["H"]))
    rows, columns = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    kept = kept_columns(columns, p.get("density", 0.6))
    generator = random_source(case, device, seed)
    order = torch.rand(batch, heads, rows, columns, generator=generator, device=generator.device).argsort(-1)
    dense = order < kept
    if p.get("hole"):
        dense[..., :1, :] = False
    return BlockMask.from_dense(dense, block, shape=shape).to(device)


def structured_mask(case: Case, device: str) -> BlockMask:
    """A band along the diagonal, as calibration finds it, of the same number of blocks a row as a random mask."""
    p = case.parameters
    block, shape = p.get("block", (64, 64)), (p["M"], p["N"])
    rows, columns = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    kept = kept_columns(columns, p.get("density", 0.6))
    middle = torch.arange(rows).unsqueeze(1) * columns // rows
    first = (middle - kept // 2).clamp(0, columns - kept)
    dense = (torch.arange(columns) >= first) & (torch.arange(columns) < first + kept)
    return BlockMask.from_dense(dense[None, None], block, shape=shape).to(device)


_LARGE, _SAMPLED_ROWS = 1 << 27, 64  # elements of an attention matrix that is not made in fp64; rows made instead


def is_large(q: Tensor, k: Tensor) -> bool:
    """Whether the attention of q and k [B, H, length, D] is compared with the reference in some rows only."""
    return is_large_matrix(q.size(0) * q.size(1) * q.size(2) * k.size(2))


def is_large_matrix(elements: int) -> bool:
    """The same by the number of elements."""
    return elements > _LARGE


def sampled_places(out: Tensor) -> tuple[Tensor, Tensor]:
    """Of out [B, H, M, D] what is compared then: the first and the last head, rows from the first to the last."""
    H, M = out.shape[1:3]
    heads = torch.tensor(sorted({0, H - 1}), device=out.device)
    return heads, torch.linspace(0, M - 1, _SAMPLED_ROWS, dtype=torch.float64, device=out.device).long()


def sampled(outputs: Outputs) -> Outputs:
    """What a reference gives of a large result; where that happens there are as many queries as keys."""
    out = outputs.get("out")
    if out is None or not is_large(out, out):
        return outputs
    heads, rows = sampled_places(out)
    return {"out": out[:, heads][:, :, rows]}


def kept_columns(columns: int, density: float) -> int:
    """How many blocks of a row a random mask keeps; one at least."""
    return max(1, round(density * columns))


def attention_flops(factor: float, dense: bool) -> Callable[[Case], float]:
    """``factor``·B·H·M·N·D of the kept blocks, or of all."""

    def flops(case: Case) -> float:
        p = case.parameters
        columns = -(-p["N"] // p.get("block", (64, 64))[1])
        share = 1.0 if dense else kept_columns(columns, p.get("density", 0.6)) / columns
        return float(factor * share * p["B"] * p["H"] * p["M"] * p["N"] * p["D"])

    return flops
