"""The loop: what comes out is what the model would have said, however it was drafted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tokcore
from tokcore.demo.token_trees.model import DemoModel, DemoSession
from tokcore.speculative import (
    Drafter,
    DySpec,
    Eagle,
    EntropySwitch,
    LengthPolicy,
    NGram,
    StaticTree,
    Step,
    ThroughputBudget,
    TokenRecycling,
    TriGram,
    generate,
    greedy_template,
)

PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8, 7, 6, 5, 4, 3, 2, 1, 40, 41, 40, 41]]
NEW = 24
DRAFTERS: dict[str, Callable[[DemoModel, DemoModel], Drafter]] = {
    "recycling": lambda *_: TokenRecycling(),
    "small template": lambda *_: TokenRecycling(greedy_template(9, 3)),
    "ngram": lambda *_: NGram(),
    "trigram": lambda *_: TriGram(),
    "dyspec": lambda model, _: DySpec(model, 16),
    "dyspec threshold": lambda _, small: DySpec(small, 16, threshold=0.05),
    "dyspec policy": lambda model, _: DySpec(model, 24, policy=LengthPolicy()),
    "eagle": lambda model, _: Eagle(model, 16),
    "static": lambda model, _: StaticTree(model),
    "static, another model": lambda _, small: StaticTree(small, greedy_template(7, 3)),
}


def greedy(model: DemoModel, **options: Any) -> list[Tensor]:
    return generate(model, PROMPTS, max_new_tokens=NEW, **options).tokens


def by_full_forward(model: DemoModel, prompt: list[int], count: int) -> list[int]:
    """Without any cache."""
    tokens = list(prompt)
    for _ in range(count):
        hidden = model.weights.model(torch.tensor([tokens]))
        tokens.append(int(model.weights.logits(hidden[0, -1]).argmax()))
    return tokens[len(prompt) :]


def same(left: list[Tensor], right: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_plain_decoding_is_the_model(model: DemoModel) -> None:
    found = greedy(model)
    for prompt, tokens in zip(PROMPTS, found, strict=True):
        expected = by_full_forward(model, prompt, 6)
        # bf16 roundings of another order of sums may part the two once; not early.
        assert tokens.tolist()[:6] == expected
    assert len({tuple(tokens.tolist()) for tokens in found}) == 3
    assert all(len(set(tokens.tolist())) > 3 for tokens in found)


@pytest.mark.parametrize("name", DRAFTERS)
def test_greedy_output_is_that_of_plain_decoding(model: DemoModel, small: DemoModel, name: str) -> None:
    drafter = DRAFTERS[name](model, small)
    plain = greedy(model)
    for _ in range(2):  # the second time tables know the text
        result = generate(model, PROMPTS, max_new_tokens=NEW, drafter=drafter)
        assert same(result.tokens, plain)
    found = result.statistics
    assert found.new_tokens == 3 * NEW
    assert sum(len(steps) for steps in found.accepted) <= 3 * NEW
    assert found.steps == len(found.nodes) == max(len(steps) for steps in found.accepted)
    assert found.tokens_per_second > 0
    if name in ("recycling", "trigram", "static", "dyspec", "eagle"):
        assert found.mean_accepted > 0.5
        assert found.steps < NEW


QUANTIZED: list[dict[str, Any]] = [
    {"high": "int8", "low": None},
    {"high": "int8", "low": "int4"},
    {"high": "int4", "low": None, "rotate": True},
]


@pytest.mark.parametrize("cache", QUANTIZED, ids=str)
def test_quantized_caches(model: DemoModel, cache: dict[str, Any]) -> None:
    # A tree fills the window faster than a token does, and what leaves the window is rounded: so here one page has left
    # it before the first step and none leaves it afterwards.
    prompt = torch.randint(61, (2, 200), generator=torch.Generator().manual_seed(4))
    options = {"max_new_tokens": NEW, "cache": {**cache, "page_size": 128, "residual": 64, "sinks": 4}}
    plain = generate(model, prompt, **options)
    exact = generate(model, prompt, max_new_tokens=NEW)
    drafter = TokenRecycling(greedy_template(16, 4))
    for _ in range(2):
        result = generate(model, prompt, drafter=drafter, **options)
        assert same(result.tokens, plain.tokens)
    assert result.statistics.mean_accepted > 0.5
    if cache["high"] == "int4":
        assert not same(exact.tokens, plain.tokens)  # codes were read


def test_budgets_only_change_the_cost(model: DemoModel) -> None:
    plain = greedy(model)
    for size in (1, 2, 7):
        result = generate(model, PROMPTS, max_new_tokens=NEW, drafter=TokenRecycling(), budget=size)
        assert same(result.tokens, plain)
        assert max(result.statistics.nodes) <= 3 * size
    measured = ThroughputBudget((1, 4, 16), refresh=8)
    drafter = TokenRecycling(greedy_template(16, 4))
    for _ in range(3):
        result = generate(model, PROMPTS, max_new_tokens=NEW, drafter=drafter, budget=measured)
        assert same(result.tokens, plain)
    assert {1, 16} <= {size for size in measured.sizes if measured.tokens_of(size) >= 1.0}


@pytest.mark.parametrize("name", ["recycling", "ngram", "dyspec"])
def test_coupled_samples_are_those_of_ordinary_sampling(model: DemoModel, small: DemoModel, name: str) -> None:
    options: dict[str, Any] = {"temperature": 1.3, "top_k": 20, "seed": torch.tensor([5, 6, 7])}
    plain = greedy(model, **options)
    drafter = DRAFTERS[name](model, small)
    for _ in range(2):
        assert same(greedy(model, drafter=drafter, **options), plain)
    assert not same(greedy(model, **{**options, "seed": torch.tensor([8, 9, 10])}), plain)
    first = generate(model, PROMPTS[:1], max_new_tokens=NEW, drafter=drafter, **{**options, "seed": 5}).tokens
    assert torch.equal(first[0], plain[0])  # a request does not depend on those beside it


def test_other_rules_and_what_they_refuse(model: DemoModel) -> None:
    drafter = TokenRecycling(greedy_template(9, 3))
    result = generate(model, PROMPTS, max_new_tokens=12, drafter=drafter, temperature=1.0, rule="target_only", seed=3)
    assert [len(tokens) for tokens in result.tokens] == [12] * 3
    with pytest.raises(ValueError, match="draft_probs"):
        generate(model, PROMPTS, max_new_tokens=12, drafter=drafter, temperature=1.0, rule="without_replacement")


def test_stop_tokens_streaming_and_ragged_ends(model: DemoModel) -> None:
    plain = greedy(model)
    stop = int(plain[0][7])
    streamed: dict[int, list[int]] = {0: [], 1: [], 2: []}
    steps: list[Step] = []
    result = generate(
        model,
        PROMPTS,
        max_new_tokens=NEW,
        drafter=TokenRecycling(),
        stop_tokens=[stop],
        on_tokens=lambda request, tokens: streamed[request].extend(tokens),
        on_step=steps.append,
    )
    for request, (tokens, whole) in enumerate(zip(result.tokens, plain, strict=True)):
        row = whole.tolist()
        expected = row[: row.index(stop) + 1] if stop in row else row
        assert tokens.tolist() == expected == streamed[request]
    assert len(steps) == result.statistics.steps
    assert sum(len(tokens) for step in steps for tokens in step.tokens) == result.statistics.new_tokens
    assert generate(model, PROMPTS, max_new_tokens=0).tokens[0].numel() == 0


def test_padded_prompts(model: DemoModel) -> None:
    padded = torch.zeros(3, 13, dtype=torch.int64)
    for row, prompt in enumerate(PROMPTS):
        padded[row, : len(prompt)] = torch.tensor(prompt)
    lengths = [len(prompt) for prompt in PROMPTS]
    assert same(generate(model, padded, lengths=lengths, max_new_tokens=NEW).tokens, greedy(model))


def test_a_long_text_that_the_draft_model_has_not_read(model: DemoModel, small: DemoModel) -> None:
    prompt = torch.randint(61, (1, 300), generator=torch.Generator().manual_seed(3))
    drafter = DySpec(small, 8)
    result = generate(model, prompt, max_new_tokens=6, drafter=drafter)
    assert same(result.tokens, generate(model, prompt, max_new_tokens=6).tokens)


def test_entropy_switching(model: DemoModel, small: DemoModel) -> None:
    always_large = greedy(model, switch=EntropySwitch(small, threshold=0.0))
    assert same(always_large, greedy(model))
    result = generate(model, PROMPTS, max_new_tokens=NEW, switch=EntropySwitch(small, threshold=1e9, least=1))
    assert result.statistics.small_steps == 3 * (NEW - 1)  # all but the first
    for prompt, tokens in zip(PROMPTS, result.tokens, strict=True):
        first = int(tokens[0])
        rest = generate(small, [[*prompt, first]], max_new_tokens=NEW - 1).tokens[0]
        assert torch.equal(tokens[1:], rest)
    some = generate(model, PROMPTS, max_new_tokens=NEW, switch=EntropySwitch(small, threshold=1.0, least=2))
    drafted = generate(
        model, PROMPTS, max_new_tokens=NEW, switch=EntropySwitch(small, threshold=1.0, least=2), drafter=NGram(8)
    )
    assert [len(tokens) for tokens in drafted.tokens] == [len(tokens) for tokens in some.tokens] == [NEW] * 3


def test_bad_input(model: DemoModel) -> None:
    with pytest.raises(ValueError, match="at least one token a request, got none in request 1"):
        generate(model, [[1], []], max_new_tokens=3)
    with pytest.raises(ValueError, match=r"'input_ids': expected values in \[0, 61\), got 61 in request 0"):
        generate(model, [[61]], max_new_tokens=3)
    with pytest.raises(ValueError, match="'lengths': expected 1 values"):
        generate(model, torch.zeros(1, 4, dtype=torch.int64), lengths=[5], max_new_tokens=3)
    with pytest.raises(TypeError, match="'input_ids': expected dtype int64"):
        generate(model, torch.zeros(1, 4), max_new_tokens=3)
    with pytest.raises(ValueError, match=r"'budget': expected a value in \[1, 256\]"):
        generate(model, PROMPTS, max_new_tokens=3, drafter=NGram(), budget=0)


def test_nan_logits_are_reported(model: DemoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = DemoSession.forward
    monkeypatch.setattr(DemoSession, "forward", lambda *a: forward(*a).index_fill(0, torch.tensor([1]), float("nan")))
    with pytest.raises(ValueError, match="expected logits without NaN, got NaN for request 1"):
        generate(model, PROMPTS, max_new_tokens=3, drafter=NGram())
    with pytest.raises(ValueError, match="request 1"):
        generate(model, PROMPTS, max_new_tokens=3, drafter=NGram(), temperature=1.0)


def test_draft_models_keep_in_step_with_the_text(model: DemoModel) -> None:
    """A draft model that is the target proposes what the target says: every path is kept to its end."""
    drafter = StaticTree(model, greedy_template(5, 4, (0.9, 0.01)))  # a chain of four
    depths = drafter.template.depths.tolist()
    assert depths == [0, 1, 2, 3, 4]
    result = generate(model, PROMPTS, max_new_tokens=NEW, drafter=drafter)
    assert all(set(steps) == {4} for steps in result.statistics.accepted)
    assert result.statistics.steps == -(-NEW // 5)


def test_public_names() -> None:
    assert all(hasattr(tokcore.speculative, name) for name in tokcore.speculative.__all__)
