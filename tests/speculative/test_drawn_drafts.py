"""Drafts that are drawn: the laws of ``draft_samples``, and that generation with drawn trees stays lossless."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import tokcore
from tokcore.demo.token_trees.model import DemoModel
from tokcore.ops.draft_samples import draft_samples
from tokcore.speculative import Draft, DraftContext, Drafter, DySpec, Eagle, StaticTree, generate, greedy_template

FALSE_ALARM = 1e-9
COLD = 0.1  # temperature at which the tests' models have likely pairs of tokens
ROWS = 40_000


def p_value(counts: Tensor, expected: Tensor) -> float:
    """Of χ² with cells of at least eight expected; the rest are one cell."""
    large = expected >= 8.0
    cells = [*zip(counts[large].tolist(), expected[large].tolist(), strict=True)]
    rest = float(expected[~large].sum())
    if rest >= 1.0:
        cells.append((float(counts[~large].sum()), rest))
    statistic = sum((seen - wanted) ** 2 / wanted for seen, wanted in cells)
    freedom = torch.tensor((len(cells) - 1) / 2).double()
    return float(torch.special.gammaincc(freedom, torch.tensor(statistic / 2).double()))


def pairs(first: Tensor, second: Tensor, V: int) -> Tensor:
    return torch.bincount(first.long() * V + second.long(), minlength=V * V).double()


Q = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)


def rows_of_q() -> Tensor:
    return Q.log().float().expand(ROWS, -1)


def test_draws_without_replacement_have_their_law() -> None:
    drawn = draft_samples(rows_of_q(), 2, seed=1, position=torch.arange(ROWS), children="without_replacement")
    expected = Q.unsqueeze(1) * Q / (1.0 - Q.unsqueeze(1))
    expected.fill_diagonal_(0.0)
    found = pairs(drawn.tokens[:, 0], drawn.tokens[:, 1], 5)
    assert not found.view(5, 5).diagonal().any()
    assert p_value(found, ROWS * expected.flatten()) >= FALSE_ALARM
    assert p_value(found, ROWS * expected.T.flatten()) < FALSE_ALARM  # the test can fail
    assert drawn.draft_probs is not None
    torch.testing.assert_close(drawn.draft_probs[0].double(), Q, rtol=1e-6, atol=0.0)


def test_independent_draws_are_independent() -> None:
    drawn = draft_samples(rows_of_q(), 2, seed=1, position=torch.arange(ROWS), children="iid")
    expected = ROWS * Q.unsqueeze(1) * Q
    assert p_value(pairs(drawn.tokens[:, 0], drawn.tokens[:, 1], 5), expected.flatten()) >= FALSE_ALARM


@pytest.mark.parametrize("children", ["coupled", "without_replacement", "iid"])
def test_only_coupled_drafts_share_noise_with_the_target(children: str) -> None:
    positions = torch.arange(ROWS)
    said = tokcore.sample(rows_of_q(), seed=1, position=positions).token
    drawn = draft_samples(rows_of_q(), 1, seed=1, position=positions, children=children).tokens[:, 0]
    if children == "coupled":
        assert torch.equal(drawn.long(), said)
        return
    expected = ROWS * Q.unsqueeze(1) * Q
    assert p_value(pairs(said, drawn, 5), expected.flatten()) >= FALSE_ALARM


def test_rows_that_cannot_be_drawn_from() -> None:
    z = torch.randn(3, 9)
    z[1, 4] = float("nan")
    z[2] = float("-inf")
    with pytest.raises(ValueError, match="'logits': expected numbers below inf, got NaN or inf in request 1"):
        draft_samples(z, 2, seed=0, position=0)
    drawn = draft_samples(z, 2, seed=0, position=0, children="without_replacement", validate=False)
    assert drawn.status[:, 0].tolist() == [0, 1, 2]
    assert drawn.tokens[1:].tolist() == [[-1, -1]] * 2
    assert drawn.draft_probs is not None
    assert not drawn.draft_probs[1:].any()
    few = torch.full((1, 9), float("-inf"))
    few[0, 3] = 1.0
    drawn = draft_samples(few, 3, seed=0, position=0, children="without_replacement")
    assert drawn.tokens.tolist() == [[3, -1, -1]]
    assert drawn.probs.tolist() == [[1.0, 0.0, 0.0]]
    assert draft_samples(few, 2, seed=0, position=0, children="iid").tokens.tolist() == [[3, 3]]


# ---- generation ------------------------------------------------------------------------------------------------------

PROMPTS = [[1, 2, 3, 4, 5], [7], [9, 8, 7, 6]]
SAMPLING: dict[str, Any] = {"max_new_tokens": 24, "temperature": 1.3, "top_k": 20, "seed": torch.tensor([5, 6, 7])}


@pytest.mark.parametrize("make", [DySpec, Eagle, StaticTree], ids=lambda make: make.__name__)
def test_coupled_trees_say_what_ordinary_sampling_says(
    model: DemoModel, small: DemoModel, make: Callable[[DemoModel], Drafter]
) -> None:
    plain = generate(model, PROMPTS, **SAMPLING)
    for drafting in (model, small):
        found = generate(model, PROMPTS, drafter=make(drafting), **SAMPLING)
        assert all(torch.equal(a, b) for a, b in zip(found.tokens, plain.tokens, strict=True))


def test_a_model_that_drafts_for_itself_is_always_right(model: DemoModel) -> None:
    chain = greedy_template(4, 3, (0.9,))  # the root and three tokens, one below the other
    found = generate(model, PROMPTS, drafter=StaticTree(model, chain), **SAMPLING)
    assert found.statistics.mean_accepted >= 2.5  # of 3; the end of the text cuts some off
    likeliest = StaticTree(model, chain)
    likeliest.draws_for = ()
    assert generate(model, PROMPTS, drafter=likeliest, **SAMPLING).statistics.mean_accepted < 1.5


def law_of_two_tokens(model: DemoModel, prompt: list[int]) -> Tensor:
    """p(t1) p(t2 | t1), float64 [V, V]."""
    V = model.vocab_size
    first = next_law(model, torch.tensor([prompt]))
    texts = torch.cat([torch.tensor([prompt]).expand(V, -1), torch.arange(V).unsqueeze(1)], 1)
    return first.T * next_law(model, texts)


def next_law(model: DemoModel, texts: Tensor) -> Tensor:
    session = model.session(len(texts), texts.size(1) + 1)
    lengths = torch.full((len(texts),), texts.size(1) - 1, dtype=torch.int32)
    session.append(texts[:, :-1], lengths)
    roots = tokcore.TokenTree(torch.full((len(texts), 1), -1, dtype=torch.int32), texts[:, -1:])
    return torch.softmax(session.logits(session.forward(roots))[:, 0].double() / COLD, -1)


class Liar:
    """Says that its children were drawn from something else."""

    num_candidates = 0

    def __init__(self, drafter: DySpec) -> None:
        self.drafter, self.max_nodes = drafter, drafter.max_nodes
        self.start, self.update = drafter.start, drafter.update

    def draft(self, context: DraftContext) -> Draft:
        draft = self.drafter.draft(context)
        if draft.draft_probs is None:
            return draft
        return replace(draft, draft_probs=torch.softmax(3.0 * draft.draft_probs.clamp(min=1e-9).log(), -1))


@pytest.mark.parametrize(
    ("rule", "make", "honest"),
    [
        ("without_replacement", lambda small: DySpec(small, 6, children=3), True),
        ("without_replacement", lambda small: StaticTree(small, greedy_template(7, 2)), True),
        ("iid", lambda small: StaticTree(small, greedy_template(7, 2)), True),
        ("coupled", lambda small: DySpec(small, 6, children=3), True),
        ("without_replacement", lambda small: Liar(DySpec(small, 6, children=3)), False),
    ],
    ids=["dyspec", "static", "iid", "coupled", "wrong q"],
)
def test_generated_tokens_have_the_law_of_the_model(
    model: DemoModel, small: DemoModel, rule: str, make: Callable[[DemoModel], Drafter], honest: bool
) -> None:
    prompt, batch, rounds = [3, 1, 4, 1, 5], 1000, 6
    V = model.vocab_size
    found = torch.zeros(V * V, dtype=torch.float64)
    for turn in range(rounds):
        seeds = torch.arange(turn * batch, (turn + 1) * batch)
        options: dict[str, Any] = {"max_new_tokens": 2, "temperature": COLD, "rule": rule, "seed": seeds}
        result = generate(model, [prompt] * batch, drafter=make(small), **options)
        tokens = torch.stack(result.tokens)
        found += pairs(tokens[:, 0], tokens[:, 1], V)
        assert result.statistics.mean_accepted > 0.1
    chance = p_value(found, rounds * batch * law_of_two_tokens(model, prompt).flatten())
    assert (chance >= FALSE_ALARM) == honest, chance


def test_steps_without_drafts(model: DemoModel, small: DemoModel) -> None:
    for rule in ("without_replacement", "iid"):
        options: dict[str, Any] = {"max_new_tokens": 5, "temperature": 1.0, "rule": rule, "seed": 3}
        plain = generate(model, PROMPTS, **options)
        alone = generate(model, PROMPTS, drafter=StaticTree(small), budget=1, **options)
        assert all(torch.equal(a, b) for a, b in zip(plain.tokens, alone.tokens, strict=True))
