"""What the ops that sample share: their options, per request or for all, and their checks in the kernel's order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv

Number = float | Tensor  # one for all requests, or one for each: [B]

# Columns of per_request, with their values where an option is off, ranges and what these are called.
SETTINGS: dict[str, tuple[float, Callable[[float], bool], str]] = {
    "temperature": (1.0, lambda x: 0.0 <= x <= 1e30, "a finite value >= 0"),
    "top_k": (0.0, lambda x: 0.0 <= x <= 1e30, "a value >= 0"),
    "top_p": (1.0, lambda x: 0.0 < x <= 1.0, "a value in (0, 1]"),
    "min_p": (0.0, lambda x: 0.0 <= x <= 1.0, "a value in [0, 1]"),
    "typical_mass": (1.0, lambda x: 0.0 < x <= 1.0, "a value in (0, 1]"),
    "repetition_penalty": (1.0, lambda x: 0.0 < x <= 1e30, "a finite value > 0"),
    "presence_penalty": (0.0, lambda x: -1e30 <= x <= 1e30, "a finite value"),
    "frequency_penalty": (0.0, lambda x: -1e30 <= x <= 1e30, "a finite value"),
}
PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def check_rows(
    require: checks.Require,
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    settings: dict[str, float],
    per_request: Tensor | None,
    token_counts: Tensor | None,
    allowed_bits: Tensor | None,
    with_nodes: bool,
) -> None:
    """In the order and wording of csrc/speculative/sampling_check.h."""
    kv.check_real(require, "logits", logits.dtype)
    others: dict[str, tuple[Tensor | None, torch.dtype]] = {
        "seeds": (seeds, torch.int64),
        "positions": (positions, torch.int64),
        "per_request": (per_request, torch.float64),
        "token_counts": (token_counts, torch.int32),
        "allowed_bits": (allowed_bits, torch.int32),
    }
    given = {name: (value, dtype) for name, (value, dtype) in others.items() if value is not None}
    for name, (value, dtype) in given.items():
        checks._dtype(require, name, value, (dtype,))
    for name, (value, _) in given.items():
        kv.check_same_device(require, name, value, logits, "logits")
    checks._rank(require, "logits", logits, 3 if with_nodes else 2)
    B, V = logits.size(0), logits.size(-1)
    words = (V + 31) // 32
    require(V >= 1, "logits", lambda: "V >= 1", lambda: f"{V}")
    checks._shape(require, "seeds", seeds, (B,), "B of logits")
    checks._shape(require, "positions", positions, (B,), "B of logits")
    if per_request is not None:
        checks._shape(require, "per_request", per_request, (B, len(SETTINGS)), "[B, settings]")
    if token_counts is not None:
        checks._shape(require, "token_counts", token_counts, (B, V), "[B, V] of logits")
    if allowed_bits is not None:
        note = "[B, N, V/32 rounded up]" if with_nodes else "[B, V/32 rounded up]"
        checks._shape(require, "allowed_bits", allowed_bits, (*logits.shape[:-1], words), note)
    for name, number in settings.items():
        check_setting(require, name, number)
    penalised = any(settings[name] != SETTINGS[name][0] for name in PENALTIES)
    counted = not penalised or token_counts is not None
    require(counted, "token_counts", lambda: "a Tensor with penalties", lambda: "None")


def check_setting(require: checks.Require, name: str, value: float) -> None:
    """The range of an option."""
    _, fits, words = SETTINGS[name]
    require(fits(value), name, lambda: words, lambda: f"{value}")


def check_unit_stride(require: checks.Require, name: str, value: Tensor) -> None:
    """Rows are dense."""
    kv.check_unit_stride(require, name, value)


def split_settings(
    require: checks.Require, logits: Tensor, options: dict[str, Number], token_counts: Tensor | None
) -> tuple[dict[str, Any], Tensor | None]:
    """Options for all requests as the operator takes them, and, where one is a Tensor, the table of all of them."""
    for name, value in options.items():
        if isinstance(value, Tensor):
            fits = value.dim() == 1 and value.size(0) == logits.size(0)
            note = f"a number or a Tensor of shape [{logits.size(0)}] (B of logits)"
            require(fits, name, lambda note=note: note, lambda value=value: checks.sizes(value.shape))  # type: ignore[misc]
            kv.check_same_device(require, name, value, logits, "logits")
            real = value.dtype != torch.bool and not value.is_complex()
            require(real, name, lambda: "a real dtype", lambda value=value: checks.dtype_name(value.dtype), TypeError)  # type: ignore[misc]
        else:
            checks._number(require, name, value, " or a Tensor")
            check_setting(require, name, value)
    top_k = options["top_k"]
    if not isinstance(top_k, Tensor):
        whole = float(top_k).is_integer()
        require(whole, "top_k", lambda: "a whole number", lambda: f"{top_k}", TypeError)
    if not any(isinstance(value, Tensor) for value in options.values()):
        return {name: int(value) if name == "top_k" else float(value) for name, value in options.items()}, None
    counted = token_counts is not None or not any(isinstance(options[name], Tensor) for name in PENALTIES)
    require(counted, "token_counts", lambda: "a Tensor with penalties", lambda: "None")
    columns = [
        value.to(torch.float64)
        if isinstance(value, Tensor)
        else torch.full((logits.size(0),), float(value), dtype=torch.float64, device=logits.device)
        for value in options.values()
    ]
    return {}, torch.stack(columns, 1)


def as_integers(require: checks.Require, name: str, value: object, logits: Tensor) -> Tensor:
    """A seed or a position for each request: int64 [B]."""
    B = logits.size(0)
    if not isinstance(value, Tensor):
        whole = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
        require(whole, name, lambda: "an int or a Tensor", lambda: type(value).__name__, TypeError)
        return torch.full((B,), value, dtype=torch.int64, device=logits.device)  # type: ignore[call-overload,no-any-return]
    integers = not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)
    require(integers, name, lambda: "an integer dtype", lambda: checks.dtype_name(value.dtype), TypeError)
    kv.check_same_device(require, name, value, logits, "logits")
    checks._shape(require, name, value, (B,), "B of logits")
    return value.to(torch.int64)


def check_optional(require: checks.Require, tensors: dict[str, Tensor | None]) -> None:
    """Each is a Tensor or None."""
    for name, value in tensors.items():
        if value is not None:
            checks._tensor(require, name, value)


def resolve_validate(require: checks.Require, validate: bool | None, logits: Tensor) -> bool:
    """None: where it costs nothing, on the CPU."""
    boolean = validate is None or isinstance(validate, bool)
    require(boolean, "validate", lambda: "a bool or None", lambda: type(validate).__name__, TypeError)
    return logits.device.type == "cpu" if validate is None else validate


def call(op: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Calls an operator; what it finds wrong with values becomes a ``ValueError``."""
    if torch.compiler.is_compiling():
        return op(*arguments, **options)
    try:
        return op(*arguments, **options)
    except RuntimeError as error:
        text = str(error).partition("\n")[0]
        if not text.startswith("tokcore."):
            raise
        raise ValueError(text) from None
