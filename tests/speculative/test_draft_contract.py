"""The draft builders' operators: registration, one error text from kernel and fake, values only kernels see."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

from tokcore.ops.draft_candidates import draft_candidates
from tokcore.ops.draft_heap import draft_heap
from tokcore.ops.draft_ngram import draft_ngram
from tokcore.ops.draft_recycling import draft_recycling, draft_recycling_update
from tokcore.ops.draft_trigram import draft_trigram, draft_trigram_update

OPS = torch.ops.tokcore
B, M, N, V, K, S, R = 2, 3, 5, 11, 4, 8, 6
WRAPPERS = {
    "draft_candidates": draft_candidates,
    "draft_heap": draft_heap,
    "draft_ngram": draft_ngram,
    "draft_recycling": draft_recycling,
    "draft_recycling_update": draft_recycling_update,
    "draft_trigram": draft_trigram,
    "draft_trigram_update": draft_trigram_update,
}


def ints(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def longs(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int64)


def good(op: str) -> dict[str, Any]:
    table = {"keys": longs(S) - 1, "successors": ints(S, K), "probs": torch.rand(S, K)}
    requests = {"roots": longs(B), "budgets": ints(B) + N}
    template = {"template_parents": torch.arange(-1, N - 1, dtype=torch.int32), "template_ranks": ints(N)}
    arguments: dict[str, dict[str, Any]] = {
        "draft_candidates": {"logits": torch.randn(3, V), "k": K},
        "draft_recycling": {"adjacency": ints(V, K), **requests, **template},
        "draft_recycling_update": {"adjacency": ints(V, K), "ids": longs(R), "candidates": ints(R, K)},
        "draft_ngram": {"history": longs(B, 9), "lengths": ints(B) + 9, "budgets": ints(B) + N, "max_nodes": N},
        "draft_heap": {
            "candidates": ints(B, M, K),
            "probs": torch.rand(B, M, K),
            "asked_parents": torch.tensor([[-1, 0, 1]] * B, dtype=torch.int32),
            "asked_ranks": ints(B, M),
            "asked_counts": ints(B) + M,
            **requests,
            "max_nodes": N,
        },
        "draft_trigram": {
            **table,
            "previous": longs(B),
            **requests,
            "vocab_size": V,
            "max_nodes": N,
            "simulations": 9,
        },
        "draft_trigram_update": {
            **table,
            "contexts": longs(R, 2),
            "candidates": ints(R, K),
            "candidate_probs": torch.rand(R, K),
        },
    }
    return arguments[op]


@pytest.mark.parametrize("op", WRAPPERS)
def test_opcheck(op: str) -> None:
    torch.library.opcheck(getattr(OPS, op), (), good(op))


SHARED: list[tuple[str, dict[str, Any], str]] = [
    ("draft_candidates", {"logits": longs(3, V)}, "'logits': expected dtype float32 or bfloat16 or float16, got int64"),
    ("draft_candidates", {"logits": torch.zeros(V)}, "'logits': expected 2 dimensions, got 1"),
    ("draft_candidates", {"k": 12}, "'k': expected a value in [1, 11] (V of logits, at most 64), got 12"),
    ("draft_candidates", {"temperature": 0.0}, "'temperature': expected a finite value > 0, got 0"),
    ("draft_candidates", {"logits": torch.zeros(V, 3).t()}, "'logits': expected stride 1 in the last dimension, got 3"),
    ("draft_recycling", {"adjacency": longs(V, K)}, "'adjacency': expected dtype int32, got int64"),
    ("draft_recycling", {"roots": longs(B, 1)}, "'roots': expected 1 dimensions, got 2"),
    ("draft_recycling", {"budgets": ints(3)}, "'budgets': expected shape [2] (B of roots), got [3]"),
    ("draft_recycling", {"template_parents": ints(257)}, "'template_parents': expected a value in [1, 256] (nodes)"),
    ("draft_recycling", {"adjacency": ints(K, V).t()}, "'adjacency': expected a contiguous tensor, got strides"),
    ("draft_recycling_update", {"candidates": ints(R, 3)}, "'candidates': expected shape [6, 4] ([R, K], R of ids"),
    ("draft_ngram", {"lengths": longs(B)}, "'lengths': expected dtype int32, got int64"),
    ("draft_ngram", {"max_nodes": 0}, "'max_nodes': expected a value in [1, 256] (nodes of a tree), got 0"),
    ("draft_ngram", {"longest": 2, "shortest": 3}, "'shortest': expected a value in [1, 2] (longest), got 3"),
    ("draft_ngram", {"max_depth": 0}, "'max_depth': expected a value in [1, 256] (tokens), got 0"),
    ("draft_heap", {"probs": torch.rand(B, M, 3)}, "'probs': expected shape [2, 3, 4] (shape of candidates), got"),
    ("draft_heap", {"asked_ranks": ints(B, 2)}, "'asked_ranks': expected shape [2, 3] ([B, M] of candidates), got"),
    ("draft_heap", {"value": "sum"}, "'value': expected 'residual' or 'joint', got 'sum'"),
    ("draft_heap", {"threshold": 2.0}, "'threshold': expected a value in [0, 1], got 2"),
    ("draft_trigram", {"keys": longs(6)}, "'keys': expected S a power of two, got 6"),
    ("draft_trigram", {"successors": ints(S + 1, K)}, "'successors': expected shape [8, 4] ([S, K], S of keys), got"),
    ("draft_trigram", {"exploration": -1.0}, "'exploration': expected a finite value >= 0, got -1"),
    ("draft_trigram", {"simulations": -1}, "'simulations': expected a value in [0, 1048576] (simulations), got -1"),
    ("draft_trigram_update", {"contexts": longs(R, 3)}, "'contexts': expected shape [6, 2] (pairs), got [6, 3]"),
]


@pytest.mark.parametrize(("op", "change", "words"), SHARED, ids=lambda x: x if isinstance(x, str) else "")
def test_kernel_fake_and_wrapper_say_the_same(op: str, change: dict[str, Any], words: str) -> None:
    given = {**good(op), **change}
    with pytest.raises(RuntimeError) as from_kernel:
        getattr(OPS, op)(**given)
    mode = FakeTensorMode()
    fakes = pytree.tree_map(lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, given)
    with pytest.raises(RuntimeError) as from_fake, mode:
        getattr(OPS, op)(**fakes)
    kernel, fake = (str(raised.value).splitlines()[0] for raised in (from_kernel, from_fake))
    assert kernel.startswith(f"tokcore.{op}: argument {words}")
    assert re.sub(r"(?<=got )(-?\d+)\.0$", r"\1", fake) == kernel
    if "stride 1" in words or (given.get("logits") is not None and given["logits"].dim() == 1):
        return  # the wrapper takes these
    with pytest.raises((TypeError, ValueError), match=re.escape(words[: words.index(":")])):
        WRAPPERS[op](**given)


def changed(tensor: Tensor, index: Any, value: int) -> Tensor:
    result = tensor.clone()
    result[index] = value
    return result


VALUES: list[tuple[str, str, Any, int, str]] = [
    (
        "draft_recycling",
        "roots",
        1,
        V,
        r"'roots': expected a value in \[0, 10\] \(V of .*\), got 11 of request 1",
    ),
    ("draft_recycling", "budgets", 0, 6, r"'budgets': expected a value in \[0, 5\] .*, got 6 of request 0"),
    ("draft_recycling", "template_parents", 2, 2, r"'template_parents': expected a lower node's .* got 2 at node 2"),
    ("draft_recycling", "template_parents", 0, 0, r"'template_parents': expected -1 at node 0, got 0 at node 0"),
    ("draft_recycling", "template_ranks", 3, 4, r"'template_ranks': expected a value in \[0, 3\] .* got 4 at node 3"),
    ("draft_recycling_update", "ids", 5, V, r"'ids': expected values below 11 \(V of adjacency\), got 11 in row 5"),
    ("draft_ngram", "lengths", 1, 10, r"'lengths': expected a value in \[0, 9\] \(L of history\), got 10 of request 1"),
    ("draft_ngram", "budgets", 1, -1, r"'budgets': expected a value in \[0, 5\] \(max_nodes\), got -1 of request 1"),
    ("draft_heap", "asked_counts", 1, 4, r"'asked_counts': expected a value in \[0, 3\] .* got 4 of request 1"),
    ("draft_heap", "asked_parents", (1, 2), 2, r"'asked_parents': expected a lower .* got 2 at node 2 of request 1"),
    ("draft_heap", "asked_parents", (1, 2), 0, r"'asked_ranks': expected a candidate once, got 0 again at node 2 of"),
    ("draft_heap", "asked_ranks", (0, 1), 4, r"'asked_ranks': expected a value in \[0, 3\] .* got 4 at node 1 of"),
    ("draft_trigram", "roots", 0, -1, r"'roots': expected a value in \[0, 10\] \(vocab_size\), got -1 of request 0"),
    ("draft_trigram", "previous", 0, -2, r"'previous': expected a value in \[-1, 10\] .* got -2 of request 0"),
    ("draft_trigram_update", "contexts", (3, 1), 2**31, r"'contexts': expected values below .* in row 3"),
]


@pytest.mark.parametrize(("op", "name", "index", "value", "words"), VALUES)
def test_values_out_of_range_raise_and_write_nothing(op: str, name: str, index: Any, value: int, words: str) -> None:
    given = good(op)
    given[name] = changed(given[name], index, value)
    before = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, given)
    with pytest.raises(ValueError, match=words):
        WRAPPERS[op](**given)
    for key, tensor in given.items():
        assert not isinstance(tensor, Tensor) or torch.equal(tensor, before[key])


def test_builders_are_compiled_in_one_graph() -> None:
    table, ids = torch.randint(V, (V, K), dtype=torch.int32), torch.tensor([3, 5, 3])
    given = good("draft_recycling")

    def call(logits: Tensor) -> Tensor:
        state = table.clone()
        tokens, _ = OPS.draft_candidates(logits, K, probs=False)
        OPS.draft_recycling_update(state, ids, tokens)
        found: Tensor = OPS.draft_recycling(state, *(given[name] for name in list(given)[1:]))[1]
        return found + 1

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    logits = torch.randn(3, V)
    assert torch.equal(compiled(logits), call(logits))
    torch._dynamo.reset()
