"""``sample`` and the ``verify_tree`` ops: registration, one error text from kernel and fake, and traced behaviour."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import tokcore

OPS = torch.ops.tokcore
B, N, V = 2, 4, 40


def arguments(op: str) -> dict[str, Any]:
    torch.manual_seed(0)
    ints = {"seeds": torch.tensor([1, 2]), "positions": torch.tensor([3, 4])}
    if op == "sample":
        return {"logits": torch.randn(B, V), **ints}
    if op == "draft_samples":
        return {"logits": torch.randn(B, V), **ints, "k": 3}
    parents = torch.tensor([[-1, 0, 0, 1], [-1, 0, 1, 2]], dtype=torch.int32)
    tree = tokcore.TokenTree(parents, torch.randint(V, (B, N)))
    first, following = tree.links()
    named = {"tokens": tree.tokens, "parents": parents, "counts": tree.counts}
    named |= {"first_child": first, "next_sibling": following}
    if op == "verify_tree_greedy":
        return {"logits": torch.randn(B, N, V), "target_tokens": None, **named}
    return {"logits": torch.randn(B, N, V), **named, **ints}


WORDS = torch.full((B, 2), -1, dtype=torch.int32)
Q = torch.full((B, N, V), 1.0 / V)
SETTINGS = torch.tensor([[1.0, 5, 0.9, 0.1, 0.9, 1.1, 0.1, 0.1]] * B, dtype=torch.float64)


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("sample", {}),
        ("sample", {"return_entropy": True, "allowed_bits": WORDS, "top_k": 3, "top_p": 0.5}),
        ("sample", {"per_request": SETTINGS, "token_counts": torch.ones(B, V, dtype=torch.int32)}),
        ("draft_samples", {}),
        ("draft_samples", {"children": "iid", "per_request": SETTINGS}),
        ("draft_samples", {"children": "without_replacement", "top_k": 3, "top_p": 0.5}),
        ("verify_tree_sample", {}),
        ("verify_tree_sample", {"rule": "iid", "draft_probs": Q}),
        ("verify_tree_greedy", {}),
        ("verify_tree_greedy", {"logits": None, "target_tokens": torch.zeros(B, N, dtype=torch.int64)}),
    ],
)
def test_opcheck(op: str, change: dict[str, Any]) -> None:
    torch.library.opcheck(getattr(OPS, op), (), {**arguments(op), **change})


ROWS: list[tuple[str, dict[str, Any], str]] = [
    *(
        (op, change, words)
        for op in ("sample", "verify_tree_sample")
        for change, words in (
            ({"seeds": torch.zeros(B)}, "argument 'seeds': expected dtype int64, got float32"),
            ({"per_request": torch.zeros(B, 8)}, "argument 'per_request': expected dtype float64, got float32"),
            ({"token_counts": torch.zeros(B, V)}, "argument 'token_counts': expected dtype int32, got float32"),
            ({"allowed_bits": WORDS.long()}, "argument 'allowed_bits': expected dtype int32, got int64"),
            ({"logits": torch.zeros(V)}, "argument 'logits': expected "),
            (
                {"positions": torch.zeros(3, dtype=torch.int64)},
                "'positions': expected shape [2] (B of logits), got [3]",
            ),
            ({"per_request": SETTINGS[:, :7]}, "'per_request': expected shape [2, 8] ([B, settings]), got [2, 7]"),
            ({"temperature": -1.0}, "argument 'temperature': expected a finite value >= 0, got -1"),
            ({"top_p": 0.0}, "argument 'top_p': expected a value in (0, 1], got 0"),
            ({"min_p": 2.0}, "argument 'min_p': expected a value in [0, 1], got 2"),
            ({"top_k": -3}, "argument 'top_k': expected a value >= 0, got -3"),
            ({"presence_penalty": 1.0}, "argument 'token_counts': expected a Tensor with penalties, got None"),
        )
    ),
    ("sample", {"logits": torch.zeros(B, V).double()}, "argument 'logits': expected dtype float32 or bfloat16 or"),
    ("sample", {"allowed_bits": WORDS[:, :1]}, "argument 'allowed_bits': expected shape [2, 2] ([B, V/32 rounded up])"),
    (
        "sample",
        {"logits": torch.zeros(V, B).T},
        "argument 'logits': expected stride 1 in the last dimension, got 2",
    ),
    ("draft_samples", {"seeds": torch.zeros(B)}, "argument 'seeds': expected dtype int64, got float32"),
    ("draft_samples", {"logits": torch.zeros(V)}, "argument 'logits': expected 2 dimensions, got 1"),
    ("draft_samples", {"per_request": SETTINGS[:, :7]}, "'per_request': expected shape [2, 8] ([B, settings]), got"),
    ("draft_samples", {"temperature": -1.0}, "argument 'temperature': expected a finite value >= 0, got -1"),
    ("draft_samples", {"logits": torch.zeros(V, B).T}, "'logits': expected stride 1 in the last dimension, got 2"),
    ("draft_samples", {"k": 41}, "argument 'k': expected a value in [1, 40] (V of logits, at most 64), got 41"),
    (
        "draft_samples",
        {"children": "best"},
        "argument 'children': expected 'coupled' or 'without_replacement' or 'iid', got 'best'",
    ),
    ("verify_tree_sample", {"rule": "best"}, "argument 'rule': expected 'coupled' or 'without_replacement' or 'iid'"),
    ("verify_tree_sample", {"rule": "iid"}, "argument 'draft_probs': expected a Tensor for this rule, got None"),
    ("verify_tree_sample", {"draft_probs": Q}, "argument 'draft_probs': expected None for this rule, got a Tensor"),
    (
        "verify_tree_sample",
        {"rule": "iid", "draft_probs": Q[:, :, :9]},
        "argument 'draft_probs': expected shape [2, 4, 40] ([B, N, V] of logits), got [2, 4, 9]",
    ),
    ("verify_tree_sample", {"rule": "typical"}, "argument 'lossless': expected False for rule 'typical', got True"),
    ("verify_tree_sample", {"rows": "none"}, "argument 'rows': expected 'auto' or 'path' or 'all', got 'none'"),
    ("verify_tree_sample", {"typical_alpha": -0.5}, "argument 'typical_alpha': expected a value in [0, 1], got -0.5"),
    ("verify_tree_sample", {"counts": torch.zeros(B)}, "argument 'counts': expected dtype int32, got float32"),
    (
        "verify_tree_greedy",
        {"parents": torch.zeros(B, 3, dtype=torch.int32)},
        "argument 'parents': expected shape [2, 4] ([B, N] of logits), got [2, 3]",
    ),
    ("verify_tree_greedy", {"logits": None}, "argument 'logits': expected one of logits and target_tokens, got none"),
    ("verify_tree_greedy", {"target_tokens": torch.zeros(B, N, dtype=torch.int64)}, "target_tokens, got both"),
]


@pytest.mark.parametrize(("op", "change", "words"), ROWS, ids=lambda value: value if isinstance(value, str) else "")
def test_kernel_and_fake_say_the_same(op: str, change: dict[str, Any], words: str) -> None:
    named = {**arguments(op), **change}
    with pytest.raises(RuntimeError) as from_kernel:
        getattr(OPS, op)(**named)
    mode = FakeTensorMode()
    fakes = {name: mode.from_tensor(x) if isinstance(x, Tensor) else x for name, x in named.items()}
    with pytest.raises(RuntimeError) as from_fake, mode:
        getattr(OPS, op)(**fakes)
    kernel, fake = (str(raised.value).splitlines()[0] for raised in (from_kernel, from_fake))
    assert words in kernel
    assert kernel.startswith(f"tokcore.{op}: argument '")
    assert re.sub(r"(?<=got )(-?\d+)\.0$", r"\1", fake) == kernel


def test_one_graph_for_every_shape() -> None:
    def call(logits: Tensor, position: Tensor) -> Tensor:
        drawn = tokcore.sample(logits * 2.0, seed=3, position=position, top_p=0.9, return_entropy=True)
        assert drawn.entropy is not None
        return drawn.token + drawn.entropy.round()

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in range(2, 8):
        logits, position = torch.randn(n, 20 * n), torch.arange(n)
        assert torch.equal(compiled(logits, position), call(logits, position))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    torch._dynamo.reset()


def test_what_is_wrong_with_values_raises_under_compile_too() -> None:
    compiled = torch.compile(tokcore.sample, fullgraph=True, backend="aot_eager")
    with pytest.raises(
        RuntimeError, match="argument 'logits': expected numbers below inf, got NaN or inf in request 1"
    ):
        compiled(torch.tensor([[0.0, 1.0], [float("nan"), 1.0]]), seed=0, position=0)
    torch._dynamo.reset()
