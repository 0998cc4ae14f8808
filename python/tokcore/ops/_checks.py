"""Argument checks of every op: one place, one wording, one order (dtype, device, rank, shape, range).

A check reads ``tokcore.<op>: argument '<name>': expected <…>, got <…>``. Wrappers raise ``TypeError`` for a wrong type
or dtype, ``NotImplementedError`` for what is valid but not supported and ``ValueError`` for the rest; fakes raise the
``RuntimeError`` that the kernel raises, with the kernel's text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tokcore import _library

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Text = Callable[[], str]  # evaluated only when a check fails: formatting would specialise symbolic shapes


class Require(Protocol):
    """Fails with the op's error text unless ``condition`` holds."""

    def __call__(
        self, condition: Any, argument: str, expected: Text, got: Text, error: type[Exception] = ValueError
    ) -> None: ...


def message(op: str, argument: str, expected: str, got: str) -> str:
    """The text of every error of this library."""
    return f"tokcore.{op}: argument '{argument}': expected {expected}, got {got}"


def wrapper_require(op: str) -> Require:
    """Checks of a public function: raises the given class of error."""

    def require(condition: Any, argument: str, expected: Text, got: Text, error: type[Exception] = ValueError) -> None:
        if not condition:
            raise error(message(op, argument, expected(), got()))

    return require


def fake_require(op: str) -> Require:
    """Checks of a fake: ``torch._check``, which symbolic shapes survive; a ``RuntimeError``, as from the kernel."""

    def require(condition: Any, argument: str, expected: Text, got: Text, error: type[Exception] = ValueError) -> None:
        torch._check(condition, lambda: message(op, argument, expected(), got()))  # type: ignore[no-untyped-call]

    return require


def dtype_name(dtype: torch.dtype) -> str:
    """``torch.bfloat16`` -> ``"bfloat16"``."""
    return str(dtype).removeprefix("torch.")


def sizes(shape: Sequence[Any]) -> str:
    """A shape as error texts print it: ``[4, 8]``."""
    return "[" + ", ".join(str(size) for size in shape) + "]"


def _tensor(require: Require, name: str, value: object) -> None:
    require(isinstance(value, Tensor), name, lambda: "a Tensor", lambda: type(value).__name__, TypeError)


def _dtype(require: Require, name: str, value: Tensor, allowed: Sequence[torch.dtype], suffix: str = "") -> None:
    require(
        value.dtype in allowed,
        name,
        lambda: "dtype " + " or ".join(dict.fromkeys(map(dtype_name, allowed))) + suffix,
        lambda: dtype_name(value.dtype),
        TypeError,
    )


def _rank(require: Require, name: str, value: Tensor, rank: int) -> None:
    require(value.dim() == rank, name, lambda: f"{rank} dimensions", lambda: f"{value.dim()}")


def _shape(require: Require, name: str, value: Tensor, shape: Sequence[Any], note: str) -> None:
    equal = value.dim() == len(shape) and all(a == b for a, b in zip(value.shape, shape, strict=True))
    require(equal, name, lambda: f"shape {sizes(shape)} ({note})", lambda: sizes(value.shape))


def check_classifier(
    require: Require,
    e: Tensor,
    c: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None = None,
    token_weight: Tensor | None = None,
    gather: Tensor | None = None,
) -> None:
    """The tensors of a public classifier function: e [..., C], c [V, C], targets [...], bias [V], gather [..., K]."""
    optional = {"bias": bias, "class_weight": class_weight, "token_weight": token_weight, "gather": gather}
    given = {name: value for name, value in optional.items() if value is not None}
    for name, value in {"e": e, "c": c, "targets": targets, **given}.items():
        _tensor(require, name, value)
    # dtype
    _dtype(require, "e", e, DTYPES)
    _dtype(require, "c", c, (e.dtype,), " of e")
    _dtype(require, "targets", targets, (torch.int64,))
    if bias is not None:
        _dtype(require, "bias", bias, (e.dtype, torch.float32), " of e")
    if class_weight is not None:
        _dtype(require, "class_weight", class_weight, (torch.float32,))
    if token_weight is not None:
        _dtype(require, "token_weight", token_weight, DTYPES)
    if gather is not None:
        _dtype(require, "gather", gather, (torch.int64,))
    # device
    supported = (*_library.devices(), "meta")
    require(
        e.device.type in supported,
        "e",
        lambda: "device " + _library.devices_text(e.device.type),
        lambda: str(e.device),
        NotImplementedError,
    )
    for name, value in {"c": c, "targets": targets, **given}.items():
        device = value.device
        require(device == e.device, name, lambda: f"device {e.device} of e", lambda device=device: str(device))  # type: ignore[misc]
    # rank
    require(e.dim() >= 1, "e", lambda: "at least 1 dimension", lambda: "0")
    _rank(require, "c", c, 2)
    # shape
    require(c.size(1) == e.size(-1), "c", lambda: f"shape [V, {e.size(-1)}] ([V, C], C of e)", lambda: sizes(c.shape))
    require(c.size(0) >= 1, "c", lambda: "at least 1 row", lambda: sizes(c.shape))
    _shape(require, "targets", targets, e.shape[:-1], "leading dimensions of e")
    if bias is not None:
        _shape(require, "bias", bias, c.shape[:1], "V of c")
    if class_weight is not None:
        _shape(require, "class_weight", class_weight, c.shape[:1], "V of c")
    if token_weight is not None:
        _shape(require, "token_weight", token_weight, targets.shape, "shape of targets")
    if gather is not None:
        leading = gather.dim() == targets.dim() + 1
        require(
            leading and all(a == b for a, b in zip(gather.shape[:-1], targets.shape, strict=True)),
            "gather",
            lambda: f"shape {sizes([*targets.shape, 'K'])} (shape of targets, then K)",
            lambda: sizes(gather.shape),
        )
    # range
    if class_weight is not None:
        require(
            not class_weight.requires_grad,
            "class_weight",
            lambda: "a tensor that does not require grad",
            lambda: "requires_grad=True",
        )
    if gather is not None:
        vocabulary, chosen = c.size(0), gather.size(-1)
        require(chosen <= vocabulary, "gather", lambda: f"K <= {vocabulary} (V of c)", lambda: f"{chosen}")


def check_positive(require: Require, name: str, value: float | None, optional: bool) -> None:
    """A finite number above zero, such as ``temperature`` and ``softcap``."""
    suffix = " or None" if optional else ""
    if value is None and optional:
        return
    _number(require, name, value, suffix)
    assert value is not None
    require(0.0 < value < math.inf, name, lambda: "a finite value > 0" + suffix, lambda: f"{value}")


def _number(require: Require, name: str, value: object, suffix: str = "") -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    require(is_number, name, lambda: "a number" + suffix, lambda: type(value).__name__, TypeError)


def check_interval(require: Require, name: str, value: float, below: float) -> None:
    """A number in [0, below): ``label_smoothing``, ``z_loss``, ``filter_eps``."""
    _number(require, name, value)
    require(0.0 <= value < below, name, lambda: f"a value in [0, {below:g})", lambda: f"{value}")


def check_count(require: Require, name: str, value: object, low: int, high: Any, bound: str) -> None:
    """An integer in [low, high]; ``bound`` names where ``high`` comes from."""
    is_count = isinstance(value, (int, torch.SymInt))
    require(is_count, name, lambda: "an int", lambda: type(value).__name__, TypeError)
    require(low <= value <= high, name, lambda: f"a value in [{low}, {high}] ({bound})", lambda: f"{value}")  # type: ignore[operator]


def check_choice(require: Require, name: str, value: object, choices: Sequence[str]) -> None:
    """One of a few words, such as ``reduction``."""
    require(value in choices, name, lambda: " or ".join(repr(c) for c in choices), lambda: repr(value))


def resolve_filter_eps(require: Require, value: float | str | None, dtype: torch.dtype, exact: bool) -> float | None:
    """The threshold of the gradient filter: ``"auto"`` is 2^-12 in bfloat16, 2^-15 in float16 and off in float32.

    ``exact`` says that the call has options with which the filter is not defined: ``"auto"`` is then off, and a number
    raises ``NotImplementedError``.
    """
    if value is None:
        return None
    if isinstance(value, str):
        require(value == "auto", "filter_eps", lambda: "'auto', None or a value in [0, 1)", lambda: repr(value))
        return None if exact else {torch.bfloat16: 2.0**-12, torch.float16: 2.0**-15}.get(dtype)
    check_interval(require, "filter_eps", value, 1.0)
    require(
        not exact,
        "filter_eps",
        lambda: "'auto' or None with label_smoothing and softcap together",
        lambda: f"{value}",
        NotImplementedError,
    )
    return float(value) or None  # nothing is below 0: exact


def value_error(op: str, error: RuntimeError) -> RuntimeError | ValueError:
    """What an operator found wrong with the values of its arguments as a ValueError; any other error as it came."""
    text = str(error).splitlines()[0] if str(error) else ""
    return ValueError(text) if text.startswith(f"tokcore.{op}: argument") else error
