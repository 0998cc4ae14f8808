"""Bad input: which error, and one text from wrapper, kernel and fake."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import tokcore

T, V, C = 6, 40, 8
NAN, INF = float("nan"), float("inf")


def good() -> dict[str, Any]:
    return {"e": torch.zeros(T, C), "c": torch.zeros(V, C), "targets": torch.zeros(T, dtype=torch.int64)}


def text(argument: str, expected: str, got: str) -> str:
    return f"argument '{argument}': expected {expected}, got {got}"


def vector(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


SHARED: list[tuple[dict[str, Any], type[Exception], str, str, str]] = [
    ({"e": [1.0]}, TypeError, "e", "a Tensor", "list"),
    ({"bias": 1.0}, TypeError, "bias", "a Tensor", "float"),
    ({"e": vector(T, C, dtype=torch.float64)}, TypeError, "e", "dtype float32 or bfloat16 or float16", "float64"),
    ({"c": vector(V, C, dtype=torch.bfloat16)}, TypeError, "c", "dtype float32 of e", "bfloat16"),
    ({"targets": vector(T)}, TypeError, "targets", "dtype int64", "float32"),
    ({"targets": vector(T, dtype=torch.int32)}, TypeError, "targets", "dtype int64", "int32"),
    ({"bias": vector(V, dtype=torch.float16)}, TypeError, "bias", "dtype float32 of e", "float16"),
    ({"c": torch.zeros(V, C, device="meta")}, ValueError, "c", "device cpu of e", "meta"),
    ({"e": torch.zeros(())}, ValueError, "e", "at least 1 dimension", "0"),
    ({"c": vector(V)}, ValueError, "c", "2 dimensions", "1"),
    ({"c": vector(V, 9)}, ValueError, "c", "shape [V, 8] ([V, C], C of e)", "[40, 9]"),
    ({"c": vector(0, C)}, ValueError, "c", "at least 1 row", "[0, 8]"),
    ({"targets": vector(5, dtype=torch.int64)}, ValueError, "targets", "shape [6] (leading dimensions of e)", "[5]"),
    (
        {"targets": vector(6, 1, dtype=torch.int64)},
        ValueError,
        "targets",
        "shape [6] (leading dimensions of e)",
        "[6, 1]",
    ),
    ({"bias": vector(39)}, ValueError, "bias", "shape [40] (V of c)", "[39]"),
    ({"bias": vector(V, 1)}, ValueError, "bias", "shape [40] (V of c)", "[40, 1]"),
    ({"softcap": 0.0}, ValueError, "softcap", "a finite value > 0 or None", "0.0"),
    ({"softcap": INF}, ValueError, "softcap", "a finite value > 0 or None", "inf"),
    ({"softcap": "30"}, TypeError, "softcap", "a number or None", "str"),
    ({"temperature": 0.0}, ValueError, "temperature", "a finite value > 0", "0.0"),
    ({"temperature": -1}, ValueError, "temperature", "a finite value > 0", "-1"),
    ({"temperature": NAN}, ValueError, "temperature", "a finite value > 0", "nan"),
    ({"temperature": None}, TypeError, "temperature", "a number", "NoneType"),
    ({"filter_eps": -0.1}, ValueError, "filter_eps", "a value in [0, 1)", "-0.1"),
    ({"filter_eps": 1.0}, ValueError, "filter_eps", "a value in [0, 1)", "1.0"),
    ({"filter_eps": NAN}, ValueError, "filter_eps", "a value in [0, 1)", "nan"),
    ({"filter_eps": "tiny"}, ValueError, "filter_eps", "'auto', None or a value in [0, 1)", "'tiny'"),
    ({"filter_eps": [1]}, TypeError, "filter_eps", "a number", "list"),
    (
        {"softcap": -1.0, "c": vector(V, 9), "targets": vector(T)},
        TypeError,
        "targets",
        "dtype int64",
        "float32",  # dtype comes before shape, shape before range
    ),
]

LOSS: list[tuple[dict[str, Any], type[Exception], str, str, str]] = [
    ({"class_weight": vector(V, dtype=torch.float64)}, TypeError, "class_weight", "dtype float32", "float64"),
    ({"class_weight": vector(3)}, ValueError, "class_weight", "shape [40] (V of c)", "[3]"),
    (
        {"class_weight": vector(V).requires_grad_()},
        ValueError,
        "class_weight",
        "a tensor that does not require grad",
        "requires_grad=True",
    ),
    (
        {"token_weight": vector(T, dtype=torch.int64)},
        TypeError,
        "token_weight",
        "dtype float32 or bfloat16 or float16",
        "int64",
    ),
    ({"token_weight": vector(5)}, ValueError, "token_weight", "shape [6] (shape of targets)", "[5]"),
    ({"ignore_index": 1.5}, TypeError, "ignore_index", "an int", "float"),
    ({"reduction": "avg"}, ValueError, "reduction", "'mean' or 'sum' or 'none'", "'avg'"),
    ({"shift": -1}, ValueError, "shift", "a value in [0, 6) (last dimension of targets)", "-1"),
    ({"shift": 6}, ValueError, "shift", "a value in [0, 6) (last dimension of targets)", "6"),
    ({"shift": 1.0}, TypeError, "shift", "a bool or an int", "float"),
    ({"label_smoothing": 1.0}, ValueError, "label_smoothing", "a value in [0, 1)", "1.0"),
    ({"label_smoothing": -0.1}, ValueError, "label_smoothing", "a value in [0, 1)", "-0.1"),
    ({"z_loss": -1.0}, ValueError, "z_loss", "a value in [0, inf)", "-1.0"),
    ({"z_loss": INF}, ValueError, "z_loss", "a value in [0, inf)", "inf"),
    ({"strategy": "fast"}, ValueError, "strategy", "'auto' or 'recompute' or 'chunked'", "'fast'"),
    ({"workspace_bytes": 0}, ValueError, "workspace_bytes", "a value in [1, 9223372036854775807] (bytes)", "0"),
    ({"workspace_bytes": 1.5}, TypeError, "workspace_bytes", "an int", "float"),
    (
        {"label_smoothing": 0.1, "softcap": 5.0, "filter_eps": 0.01},
        NotImplementedError,
        "filter_eps",
        "'auto' or None with label_smoothing and softcap together",
        "0.01",
    ),
]

LOGPROBS: list[tuple[dict[str, Any], type[Exception], str, str, str]] = [
    ({"gather": vector(T, 2)}, TypeError, "gather", "dtype int64", "float32"),
    ({"gather": vector(T, dtype=torch.int64)}, ValueError, "gather", "shape [6, K] (shape of targets, then K)", "[6]"),
    (
        {"gather": vector(5, 2, dtype=torch.int64)},
        ValueError,
        "gather",
        "shape [6, K] (shape of targets, then K)",
        "[5, 2]",
    ),
    ({"gather": vector(T, 41, dtype=torch.int64)}, ValueError, "gather", "K <= 40 (V of c)", "41"),
    ({"topk": 41}, ValueError, "topk", "a value in [0, 40] (V of c)", "41"),
    ({"topk": -1}, ValueError, "topk", "a value in [0, 40] (V of c)", "-1"),
    ({"topk": 1.0}, TypeError, "topk", "an int", "float"),
]

WRAPPERS = [
    (name, change, error, text(*words))
    for name, table in (("linear_cross_entropy", SHARED + LOSS), ("linear_logprobs", SHARED + LOGPROBS))
    for change, error, *words in table
]


@pytest.mark.parametrize(("name", "change", "error", "words"), WRAPPERS, ids=[f"{n}-{w}" for n, _, _, w in WRAPPERS])
def test_wrapper(name: str, change: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error) as raised:
        getattr(tokcore, name)(**{**good(), **change})
    assert type(raised.value) is error
    assert str(raised.value) == f"tokcore.{name}: {words}"


@pytest.mark.parametrize("value", [-1, 40, 2**40, -(2**62)])
def test_targets_out_of_range(value: int) -> None:
    given = good()
    given["targets"][3] = value
    got = f"{value} at position 3"
    with pytest.raises(ValueError, match=re.escape(text("targets", "values in [0, 40) or ignore_index -100", got))):
        tokcore.linear_cross_entropy(**given)
    with pytest.raises(ValueError, match=re.escape(text("targets", "values in [0, 40)", got))):
        tokcore.linear_logprobs(**given)


def test_gather_out_of_range() -> None:
    gather = torch.zeros(T, 3, dtype=torch.int64)
    gather[4, 1] = 40
    with pytest.raises(ValueError, match=re.escape(text("gather", "values in [0, 40)", "40 at position 4"))):
        tokcore.linear_logprobs(**good(), gather=gather)


def test_unsupported_device() -> None:
    given = {name: value.to("meta") for name, value in good().items()}
    assert isinstance(tokcore.linear_cross_entropy(**given), Tensor)  # shapes only


def forward_arguments() -> dict[str, Any]:
    return {"e": torch.zeros(T, C), "c": torch.zeros(V, C), "indices": torch.zeros(T, 2, dtype=torch.int64)}


def backward_arguments() -> dict[str, Any]:
    vectors = {"logits": vector(T, 2), "lse": vector(T), "grad_prob": vector(T), "grad_logits": vector(T, 2)}
    return {**forward_arguments(), **vectors, "kept": torch.zeros(0, 0, dtype=torch.int32)}


BOTH: list[tuple[dict[str, Any], str, str, str]] = [
    ({"e": vector(T, C, dtype=torch.float64)}, "e", "dtype float32 or bfloat16 or float16", "float64"),
    ({"c": vector(V, C, dtype=torch.float16)}, "c", "dtype float32 of e", "float16"),
    ({"indices": vector(T, 2)}, "indices", "dtype int64", "float32"),
    ({"bias": vector(V, dtype=torch.float16)}, "bias", "dtype float32 of e", "float16"),
    ({"class_weight": vector(V, dtype=torch.float16)}, "class_weight", "dtype float32", "float16"),
    ({"e": vector(T, 1, C)}, "e", "2 dimensions", "3"),
    ({"c": vector(C)}, "c", "2 dimensions", "1"),
    ({"indices": vector(T, dtype=torch.int64)}, "indices", "2 dimensions", "1"),
    ({"c": vector(V, 9)}, "c", "shape [V, 8] ([V, C], C of e)", "[40, 9]"),
    ({"c": vector(0, C)}, "c", "at least 1 row", "[0, 8]"),
    ({"indices": vector(5, 2, dtype=torch.int64)}, "indices", "shape [6, K] ([T, K], T of e)", "[5, 2]"),
    ({"indices": vector(T, 0, dtype=torch.int64)}, "indices", "at least 1 column", "[6, 0]"),
    ({"bias": vector(39)}, "bias", "shape [40] (V of c)", "[39]"),
    ({"class_weight": vector(V, 2)}, "class_weight", "shape [40] (V of c)", "[40, 2]"),
    ({"seq_len": 4}, "seq_len", "0 or a divisor of 6 (T of e)", "4"),
    ({"seq_len": -6}, "seq_len", "0 or a divisor of 6 (T of e)", "-6"),
    ({"shift": -1}, "shift", "a value >= 0", "-1"),
    ({"softcap": 0.0}, "softcap", "a finite value > 0 or None", "0"),
    ({"softcap": NAN}, "softcap", "a finite value > 0 or None", "nan"),
    ({"temperature": -0.5}, "temperature", "a finite value > 0", "-0.5"),
    ({"temperature": INF}, "temperature", "a finite value > 0", "inf"),
    ({"filter_eps": 1.5}, "filter_eps", "a value in [0, 1)", "1.5"),
    ({"e": torch.zeros(T, 2 * C)[:, ::2]}, "e", "stride 1 in the last dimension", "2"),
    ({"c": torch.zeros(C, V).t()}, "c", "stride 1 in the last dimension", "40"),
]

OPERATOR_ROWS: list[tuple[str, dict[str, Any], str, str, str]] = [
    *(("linear_logprobs_forward", *row) for row in BOTH),
    *(("linear_logprobs_backward", *row) for row in BOTH if "indices" not in row[0]),
    ("linear_logprobs_forward", {"topk": 41}, "topk", "a value in [0, 40] (V of c)", "41"),
    ("linear_logprobs_forward", {"topk": -1}, "topk", "a value in [0, 40] (V of c)", "-1"),
    ("linear_logprobs_backward", {"lse": vector(T, dtype=torch.float64)}, "lse", "dtype float32", "float64"),
    ("linear_logprobs_backward", {"lse": vector(5)}, "lse", "shape [6] (T of e)", "[5]"),
    ("linear_logprobs_backward", {"logits": vector(T, 1)}, "logits", "shape [6, 2] ([T, K] of indices)", "[6, 1]"),
    ("linear_logprobs_backward", {"grad_prob": vector(T, 1)}, "grad_prob", "shape [6] (T of e)", "[6, 1]"),
    ("linear_logprobs_backward", {"grad_plogp": vector(7)}, "grad_plogp", "shape [6] (T of e)", "[7]"),
    ("linear_logprobs_backward", {"grad_sum": vector(7)}, "grad_sum", "shape [6] (T of e)", "[7]"),
    ("linear_logprobs_backward", {"need_bias": True}, "bias", "a Tensor with need_bias", "None"),
]
OPERATORS = [(name, change, text(*words)) for name, change, *words in OPERATOR_ROWS]


def op_arguments(name: str, change: dict[str, Any]) -> dict[str, Any]:
    return {**(forward_arguments() if name.endswith("forward") else backward_arguments()), **change}


@pytest.mark.parametrize(("name", "change", "words"), OPERATORS, ids=[f"{n}-{w}" for n, _, w in OPERATORS])
def test_kernel_and_fake_say_the_same(name: str, change: dict[str, Any], words: str) -> None:
    op = getattr(torch.ops.tokcore, name)
    arguments = op_arguments(name, change)
    expected = f"tokcore.{name}: {words}"
    with pytest.raises(RuntimeError) as from_kernel:
        op(**arguments)
    mode = FakeTensorMode()
    fakes = {key: mode.from_tensor(value) if isinstance(value, Tensor) else value for key, value in arguments.items()}
    with pytest.raises(RuntimeError) as from_fake, mode:
        op(**fakes)
    assert _same_numbers(str(from_fake.value)) == expected
    assert _same_numbers(str(from_kernel.value).splitlines()[0]) == expected


def _same_numbers(text: str) -> str:
    """Whole floats without their fraction: "got 0.0" and "got 0" are one text."""
    return re.sub(r"(?<=got )(-?\d+)\.0$", r"\1", text)


@pytest.mark.parametrize("rows", [4, 8])
def test_a_mask_of_the_wrong_size_raises_and_does_not_crash(rows: int) -> None:
    arguments = {**backward_arguments(), "filter_eps": 0.01, "kept": torch.zeros(rows, 3, dtype=torch.int32)}
    with pytest.raises(RuntimeError, match="argument 'kept': expected"):
        torch.ops.tokcore.linear_logprobs_backward(**arguments)
