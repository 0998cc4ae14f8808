"""Checks of the PARO ops: what the C++ entries check, in their order and wording, and the shapes of the operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tokcore.ops import _attention_checks as attention
from tokcore.ops import _checks as checks
from tokcore.ops._checks import Require, _dtype, _rank, _shape, sizes

GROUP = 64
QK_FORMATS = ("int8", "int4", "bf16")
PV_FORMATS = ("int8", "int4", "fp8", "bf16")
ROPE_PAIRS = ("interleaved", "half")
CODE_DTYPES = {"int8": torch.int8, "int4": torch.uint8, "fp8": torch.uint8, "bf16": torch.bfloat16}


def _up(value: Any, multiple: int) -> Any:
    return (value + multiple - 1) // multiple * multiple


def operand_shapes(B: Any, H: Any, Hkv: Any, N: Any, D: Any, qk: str, pv: str) -> dict[str, tuple[Any, ...]]:
    """The shapes of codes and scales by name; (0,) where there are none."""
    rows, width = _up(N, GROUP), _up(D, 64)
    shapes: dict[str, tuple[Any, ...]] = {}
    code_width = width // 2 if qk == "int4" else width
    shapes["q_codes"] = (B, H, rows, code_width)
    shapes["k_codes"] = (B, Hkv, rows, code_width)
    if pv == "bf16":
        shapes["v_codes"] = (B, Hkv, rows, width)
    else:
        shapes["v_codes"] = (B, Hkv, rows // GROUP, _up(D, 32), GROUP // 2 if pv == "int4" else GROUP)
    shapes["q_scale"] = (0,) if qk == "bf16" else (B, H, rows)
    shapes["k_scale"] = (0,) if qk == "bf16" else (B, Hkv, rows // GROUP)
    shapes["v_scale"] = (0,) if pv == "bf16" else (B, Hkv, D)
    return shapes


def check_order(
    require: Require,
    permutation: Sequence[int],
    grid: Sequence[Any],
    text: Sequence[Any],
    Hkv: Any,
    length: Any,
    length_name: str,
) -> None:
    """One code for each key head, and a grid that holds N tokens with the text."""
    require(
        len(permutation) == Hkv,
        "permutation",
        lambda: f"{Hkv} codes (Hkv of k)",
        lambda: f"{len(permutation)} codes",
    )
    for code in permutation:
        require(0 <= code <= 5, "permutation", lambda: "codes in [0, 5]", lambda code=code: f"{code}")  # type: ignore[misc]
    require(len(grid) == 3, "grid", lambda: "3 sizes", lambda: f"{len(grid)}")
    require(len(text) == 2, "text", lambda: "2 counts", lambda: f"{len(text)}")
    for extent in grid:
        require(extent >= 1, "grid", lambda: "sizes >= 1", lambda extent=extent: f"{extent}")  # type: ignore[misc]
    for count in text:
        require(count >= 0, "text", lambda: "counts >= 0", lambda count=count: f"{count}")  # type: ignore[misc]
    tokens = grid[0] * grid[1] * grid[2] + text[0] + text[1]
    require(tokens == length, "grid", lambda: f"F*H*W + text = {length} ({length_name})", lambda: f"{tokens}")


def check_prepare(
    require: Require,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    permutation: Sequence[int],
    grid: Sequence[Any],
    text: Sequence[Any],
    rope: Mapping[str, Tensor | None],
    rope_pairs: str,
    qk: str,
    pv: str,
) -> None:
    """Everything that paro_prepare demands but the strides."""
    attention.check_tensors(require, q, k, v)
    tables = {name: value for name, value in rope.items() if value is not None}
    for name, value in tables.items():
        _dtype(require, name, value, (torch.float32,))
    attention.check_devices(require, q, {"k": k, "v": v, **tables})
    for name, value in {"q": q, "k": k, "v": v}.items():
        _rank(require, name, value, 4)
    for name, value in tables.items():
        _rank(require, name, value, 2)
    attention.check_shapes(require, q, k)
    require(k.size(2) == q.size(2), "k", lambda: f"{q.size(2)} tokens (N of q)", lambda: f"{k.size(2)}")
    _shape(require, "v", v, k.shape, "shape of k")
    attention.check_range(require, q, 1.0)
    check_order(require, permutation, grid, text, k.size(1), q.size(2), "N of q")
    checks.check_choice(require, "rope_pairs", rope_pairs, ROPE_PAIRS)
    check_rope(require, q, grid, rope)
    checks.check_choice(require, "qk", qk, QK_FORMATS)
    checks.check_choice(require, "pv", pv, PV_FORMATS)


def check_rope(require: Require, q: Tensor, grid: Sequence[Any], rope: Mapping[str, Tensor | None]) -> None:
    """Both tables or none, of fitting shapes."""
    (cos_name, cos), (sin_name, sin) = rope.items()
    given = sin is not None
    require(
        (cos is None) == (sin is None),
        sin_name,
        lambda: f"a Tensor exactly if {cos_name} is one",
        lambda: "a Tensor" if given else "None",
    )
    if cos is None or sin is None:
        return
    N, D = q.size(2), q.size(3)
    volume = grid[0] * grid[1] * grid[2]
    rows_fit = cos.size(0) == N or cos.size(0) == volume
    require(
        D % 2 == 0 and rows_fit and (cos.size(1) == D or cos.size(1) == D // 2),
        cos_name,
        lambda: f"shape [{N} or {volume}, {D} or {D // 2}] (N or F*H*W, D or D/2, D even)",
        lambda: sizes(cos.shape),
    )
    _shape(require, sin_name, sin, cos.shape, f"shape of {cos_name}")


def check_operands(
    require: Require,
    operands: Mapping[str, Tensor],
    mask_bits: Tensor,
    permutation: Sequence[int],
    grid: Sequence[Any],
    text: Sequence[Any],
    block: tuple[int, int],
    head_dim: Any,
    scale: float,
    out_dtype: torch.dtype,
    qk: str,
    pv: str,
) -> tuple[Any, Any, Any]:
    """Everything that paro_attention demands; returns B, H and N."""
    checks.check_choice(require, "qk", qk, QK_FORMATS)
    checks.check_choice(require, "pv", pv, PV_FORMATS)
    q_codes, k_codes = operands["q_codes"], operands["k_codes"]
    for name in ("q_codes", "k_codes", "v_codes"):
        _dtype(require, name, operands[name], (CODE_DTYPES[pv if name == "v_codes" else qk],))
    floats = ("q_scale", "k_scale", "v_scale", "mean_score")
    for name in floats:
        _dtype(require, name, operands[name], (torch.float32,))
    _dtype(require, "mask_bits", mask_bits, (torch.int32,))
    real = out_dtype in checks.DTYPES
    require(real, "out_dtype", lambda: "float32 or bfloat16 or float16", lambda: checks.dtype_name(out_dtype))
    for name, value in {**operands, "mask_bits": mask_bits}.items():
        device = value.device
        same = device == q_codes.device
        require(same, name, lambda: f"device {q_codes.device} of q_codes", lambda device=device: str(device))  # type: ignore[misc]
    _rank(require, "q_codes", q_codes, 4)
    _rank(require, "k_codes", k_codes, 4)
    _rank(require, "v_codes", operands["v_codes"], 4 if pv == "bf16" else 5)
    _rank(require, "mask_bits", mask_bits, 4)
    B, H, Hkv = q_codes.size(0), q_codes.size(1), k_codes.size(1)
    divides = H == 0 if Hkv == 0 else H % Hkv == 0
    require(divides, "k_codes", lambda: f"a number of heads that divides {H} (H of q_codes)", lambda: f"{Hkv}")
    N = grid[0] * grid[1] * grid[2] + text[0] + text[1] if len(grid) == 3 and len(text) == 2 else 0
    check_order(require, permutation, grid, text, Hkv, N, "N")
    in_range = head_dim >= attention.HEAD_DIMS[0] and head_dim <= attention.HEAD_DIMS[1]
    require(in_range, "head_dim", lambda: "a value in [32, 256]", lambda: f"{head_dim}")
    shapes = operand_shapes(B, H, Hkv, N, head_dim, qk, pv)
    notes = {
        "q_codes": "codes of [B, H, N, D]",
        "k_codes": "codes of [B, Hkv, N, D]",
        "v_codes": "codes of [B, Hkv, N, D]",
    }
    notes |= {name: f"scales of {name[0]}_codes" for name in ("q_scale", "k_scale", "v_scale")}
    for name, note in notes.items():
        _shape(require, name, operands[name], shapes[name], note)
    mean_score = operands["mean_score"]
    _shape(require, "mean_score", mean_score, (0,) if mean_score.dim() == 1 else (B, H, N), "[B, H, N] or none")
    attention.check_block_sizes(require, *block)
    attention.check_mask_shape(require, mask_bits, B, H, N, N, *block)
    require(0.0 < scale < float("inf"), "scale", lambda: "a finite value > 0", lambda: f"{scale}")
    for name, value in operands.items():
        dense = value.is_contiguous()
        require(dense, name, lambda: "a contiguous tensor", lambda: "strides that are not")
    return B, H, N
