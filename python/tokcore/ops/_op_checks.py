"""Checks of the operators themselves: what the C++ kernels check, in their order and wording, for the fakes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tokcore.ops._checks import DTYPES, Require, _dtype, _rank, _shape, sizes


def check_operands(
    require: Require,
    e: Tensor,
    c: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    per_position: dict[str, Tensor],
    indices_name: str = "indices",
) -> None:
    """The op pair's tensors: e [T, C], c [V, C], indices [T, K], bias [V], class_weight [V]; fp32 [T] or [T, K]."""
    optional = {"bias": bias, "class_weight": class_weight}
    given = {name: value for name, value in optional.items() if value is not None}
    # dtype
    _dtype(require, "e", e, DTYPES)
    _dtype(require, "c", c, (e.dtype,), " of e")
    _dtype(require, indices_name, indices, (torch.int64,))
    if bias is not None:
        _dtype(require, "bias", bias, (e.dtype, torch.float32), " of e")
    if class_weight is not None:
        _dtype(require, "class_weight", class_weight, (torch.float32,))
    for name, value in per_position.items():
        _dtype(require, name, value, (torch.float32,))
    # device
    for name, value in {"c": c, indices_name: indices, **given, **per_position}.items():
        device = value.device
        require(device == e.device, name, lambda: f"device {e.device} of e", lambda device=device: str(device))  # type: ignore[misc]
    # rank
    _rank(require, "e", e, 2)
    _rank(require, "c", c, 2)
    _rank(require, indices_name, indices, 2)
    # shape
    require(c.size(1) == e.size(1), "c", lambda: f"shape [V, {e.size(1)}] ([V, C], C of e)", lambda: sizes(c.shape))
    require(c.size(0) >= 1, "c", lambda: "at least 1 row", lambda: sizes(c.shape))
    require(
        indices.size(0) == e.size(0),
        indices_name,
        lambda: f"shape [{e.size(0)}, K] ([T, K], T of e)",
        lambda: sizes(indices.shape),
    )
    require(indices.size(1) >= 1, indices_name, lambda: "at least 1 column", lambda: sizes(indices.shape))
    if bias is not None:
        _shape(require, "bias", bias, c.shape[:1], "V of c")
    if class_weight is not None:
        _shape(require, "class_weight", class_weight, c.shape[:1], "V of c")
    for name, value in per_position.items():
        rank_two = name in ("logits", "grad_logits")
        note = "[T, K] of indices" if rank_two else "T of e"
        _shape(require, name, value, indices.shape if rank_two else indices.shape[:1], note)


def check_options(
    require: Require,
    e: Tensor,
    c: Tensor,
    seq_len: int,
    shift: int,
    softcap: float | None,
    temperature: float,
    filter_eps: float | None,
    topk: int = 0,
) -> None:
    """The numbers of the op pair, then the one demand on strides: rows of e and c are dense."""
    num_tokens, vocabulary = e.size(0), c.size(0)
    # range
    divides = seq_len == 0 or (seq_len > 0 and num_tokens % seq_len == 0)
    require(divides, "seq_len", lambda: f"0 or a divisor of {num_tokens} (T of e)", lambda: f"{seq_len}")
    require(shift >= 0, "shift", lambda: "a value >= 0", lambda: f"{shift}")
    if softcap is not None:
        require(0.0 < softcap < math.inf, "softcap", lambda: "a finite value > 0 or None", lambda: f"{softcap}")
    require(0.0 < temperature < math.inf, "temperature", lambda: "a finite value > 0", lambda: f"{temperature}")
    in_vocabulary = topk >= 0 and topk <= vocabulary
    require(in_vocabulary, "topk", lambda: f"a value in [0, {vocabulary}] (V of c)", lambda: f"{topk}")
    if filter_eps is not None:
        require(0.0 <= filter_eps < 1.0, "filter_eps", lambda: "a value in [0, 1)", lambda: f"{filter_eps}")
    for name, value in {"c": c, "e": e}.items():
        rows = value.size(0)
        require(rows < 2**31, name, lambda: f"fewer than {2**31} rows", lambda value=value: sizes(value.shape))  # type: ignore[misc]
    # contiguity
    for name, value in {"e": e, "c": c}.items():
        if value.numel() > 0 and value.size(1) > 1:
            stride = value.stride(1)
            require(stride == 1, name, lambda: "stride 1 in the last dimension", lambda stride=stride: f"{stride}")  # type: ignore[misc]
