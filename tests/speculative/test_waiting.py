"""How often a step reads values back from its tensors: on a GPU each time would wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tokcore
from tokcore.ops.draft_candidates import Candidates, draft_candidates
from tokcore.speculative import Drafter, EntropySwitch, NGram, ThroughputBudget, TokenRecycling, TriGram, generate

V, PROMPTS, NEW = 40, [[1, 2, 3], [7], [5, 6, 5, 6, 5]], 12
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal"}


class Markov:
    """A model whose logits depend on the last token alone, as a session that reads no value."""

    def __init__(self, seed: int) -> None:
        self.vocab_size = V
        self.table = 3.0 * torch.randn(V, V, generator=torch.Generator().manual_seed(seed))

    def session(self, *_: Any) -> Markov:
        return self

    @property
    def lengths(self) -> Tensor:
        raise AssertionError("the loop knows what it put into the cache")

    def append(self, tokens: Tensor, lengths: Tensor) -> None:
        assert tokens.size(0) == lengths.size(0)

    def forward(self, tree: tokcore.TokenTree) -> Tensor:
        return self.table[tree.tokens]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def top(self, hidden: Tensor, k: int) -> Candidates:
        return draft_candidates(hidden, k)

    def compact(self, tree: tokcore.TokenTree, verdict: tokcore.Verdict) -> None:
        assert tree.batch == verdict.accepted_counts.size(0)


class _Reads(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func._schema.name in READS
        return func(*args, **(kwargs or {}))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """Reads of single values, of whole tensors, and of shapes that depend on values."""
    lists = 0

    def tolist(tensor: Tensor) -> Any:
        nonlocal lists
        lists += 1
        return original(tensor)

    def refused(_: Tensor) -> Any:
        raise AssertionError("a copy to the CPU")

    original = torch.Tensor.tolist
    with monkeypatch.context() as patch, _Reads() as reads:
        patch.setattr(torch.Tensor, "tolist", tolist)
        patch.setattr(torch.Tensor, "cpu", refused)
        yield lambda: lists + reads.count


DRAFTERS: dict[str, Callable[[], Drafter | None]] = {
    "none": lambda: None,
    "recycling": TokenRecycling,
    "ngram": NGram,
    "trigram": lambda: TriGram(16, slots=256),
}


@pytest.mark.parametrize("sampled", [{}, {"temperature": 0.8, "top_k": 5, "seed": 3}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_step_reads_once(drafter: str, sampled: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = Markov(1)
    plain = generate(model, PROMPTS, max_new_tokens=NEW, **sampled)
    made = DRAFTERS[drafter]()
    with counted(monkeypatch) as reads:
        found = generate(model, PROMPTS, max_new_tokens=NEW, drafter=made, **sampled)
        assert reads() == found.statistics.steps + 1  # and the text at the end
    assert all(torch.equal(a, b) for a, b in zip(found.tokens, plain.tokens, strict=True))


def test_a_budget_reads_no_more_and_a_switch_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with counted(monkeypatch) as reads:
        budget = ThroughputBudget((1, 4, 8))
        found = generate(Markov(1), PROMPTS, max_new_tokens=NEW, drafter=NGram(), budget=budget, stop_tokens=[3])
        assert reads() == found.statistics.steps + 1
    with counted(monkeypatch) as reads:
        switch = EntropySwitch(Markov(2), threshold=1.5, window=2, least=1)
        found = generate(Markov(1), PROMPTS, max_new_tokens=NEW, drafter=NGram(), switch=switch)
        assert found.statistics.small_steps > 0
        assert reads() == 2 * found.statistics.steps + 1


# ---- the cache -------------------------------------------------------------------------------------------------------


def cache() -> tokcore.QuantizedKVCache:
    made = tokcore.QuantizedKVCache(1, 3, 2, 32, 90, high="int8", low=None, page_size=16, residual=16)
    _, _, recent, high, *_ = made.layer(0).operands()
    for part in (*recent, *high[:6], *high[7:]):  # what no token lies in is compared as well
        part.zero_()
    return made


def state(made: tokcore.QuantizedKVCache) -> list[Tensor]:
    lengths, starts, recent, high, *_ = made.layer(0).operands()
    return [part.view(torch.uint8).clone() for part in (lengths, starts, *recent, *high) if part.numel() > 0]


def tokens(T: int, seed: int) -> Tensor:
    return torch.randn(3, T, 2, 32, generator=torch.Generator().manual_seed(seed)).bfloat16()


def test_an_append_that_nobody_validates_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    checked, unchecked = cache(), cache()
    for step, (T, lengths) in enumerate([(40, [40, 3, 0]), (1, None), (20, [0, 20, 7]), (1, [1, 0, 1])]):
        given = None if lengths is None else torch.tensor(lengths, dtype=torch.int32)
        k, v = tokens(T, step), tokens(T, step + 9)
        checked.append(0, k, v, given)
        with counted(monkeypatch) as reads:
            unchecked.append(0, k, v, given, validate=False)
            assert reads() == 0
        assert all(torch.equal(a, b) for a, b in zip(state(unchecked), state(checked), strict=True))
    with pytest.raises(ValueError, match="argument 'slot_mapping': expected"):  # one more than there is room for
        unchecked.append(0, tokens(90, 1), tokens(90, 2), validate=False)
    with pytest.raises(ValueError, match="argument 'slot_mapping': expected"):  # lengths out of range
        unchecked.append(0, tokens(4, 1), tokens(4, 2), torch.tensor([5, 1, 0]), validate=False)
    assert all(torch.equal(a, b) for a, b in zip(state(unchecked), state(checked), strict=True))
