"""``sample``: the options' meanings, the noise, and what cannot be drawn from."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from sampling_support import exceeds, random
from support import bits, threads
from torch import Tensor

import tokcore
from tokcore.reference.sampling import make_row, philox, token_noise, weight_bits

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize("V", [1, 2, 7, 50])
def test_weights_are_probabilities(V: int) -> None:
    logits = 3.0 * random(V)
    row = make_row(logits, {"temperature": 0.7})
    p = torch.tensor(row.weights, dtype=torch.float64) / row.mass
    assert float((p - torch.softmax(logits.double() / 0.7, 0)).abs().sum()) / 2 <= 1e-12
    assert row.mass < 2**62


def test_sums_of_weights_fit() -> None:
    for V in (2, 2**12, 2**12 + 1, 131072, 256000, 2**20):
        assert 40 <= weight_bits(V) <= 50
        assert V << weight_bits(V) <= 2**62


def test_numbers_are_those_of_the_distribution() -> None:
    z = 3.0 * random(6, 3001)
    found = tokcore.sample(z, seed=1, position=torch.arange(6), temperature=1.3, return_entropy=True)
    logp = torch.log_softmax(z.double() / 1.3, -1)
    p = logp.exp()
    entropy = -(p * logp).sum(-1)
    torch.testing.assert_close(found.logprob.double(), logp[torch.arange(6), found.token], rtol=1e-6, atol=1e-6)
    assert found.entropy is not None
    assert found.varentropy is not None
    torch.testing.assert_close(found.entropy.double(), entropy, rtol=1e-6, atol=1e-6)
    spread = (p * logp.square()).sum(-1) - entropy.square()
    torch.testing.assert_close(found.varentropy.double(), spread, rtol=1e-5, atol=1e-6)


def support_of(z: Tensor, draws: int = 4000, **options: Any) -> set[int]:
    """The tokens that come up."""
    rows = z.expand(draws, -1)
    return set(tokcore.sample(rows, seed=5, position=torch.arange(draws), **options).token.tolist())


def test_options_keep_what_they_say() -> None:
    p = torch.tensor([0.30, 0.02, 0.25, 0.08, 0.15, 0.20])
    z = p.log()
    assert support_of(z) == {0, 1, 2, 3, 4, 5}
    assert support_of(z, top_k=3) == {0, 2, 5}
    assert support_of(z, top_p=0.54) == {0, 2}
    assert support_of(z, top_p=0.56) == {0, 2, 5}
    assert support_of(z, min_p=0.4) == {0, 2, 4, 5}
    assert support_of(z, temperature=0.0) == {0}
    # -ln p is 1.2, 3.9, 1.4, 2.5, 1.9, 1.6, the entropy 1.61.
    assert support_of(z, typical_mass=0.1) == {5}
    assert support_of(z, typical_mass=0.4) == {2, 5}
    assert support_of(z, top_k=5, top_p=0.9) == {0, 2, 4, 5}
    assert support_of(z, allowed_bits=torch.full((4000, 1), 0b101010, dtype=torch.int32)) == {1, 3, 5}


def test_ties_are_kept() -> None:
    z = torch.tensor([2.0, 1.0, 2.0, 1.0, 0.0])
    assert support_of(z, top_k=1) == {0, 2}
    assert support_of(z, top_k=3) == {0, 1, 2, 3}
    assert support_of(z, top_p=0.01) == {0, 2}
    assert support_of(z, temperature=0.0) == {0}


def test_each_filter_sees_what_the_ones_before_left() -> None:
    z = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert support_of(z, top_p=0.6) == {0, 1}
    assert support_of(z, top_k=2, top_p=0.56) == {0}  # 0.4 / 0.7 > 0.56


def test_penalties() -> None:
    counts = torch.tensor([[2, 0, 1, 0]], dtype=torch.int32)
    z = torch.tensor([[3.0, 1.0, -1.0, 0.0]])
    given = {"repetition_penalty": 2.0, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    expected = torch.tensor([[3.0 / 2 - 0.5 - 0.5, 1.0, -2.0 - 0.5 - 0.25, 0.0]])
    for position in range(20):
        changed = tokcore.sample(z, seed=0, position=position, token_counts=counts, **given)
        plain = tokcore.sample(expected, seed=0, position=position)
        assert torch.equal(changed.token, plain.token)
        assert torch.equal(changed.logprob, plain.logprob)


def test_draws_follow_the_distribution() -> None:
    logits = 1.5 * random(40)
    draws = 40000
    tokens = tokcore.sample(logits.expand(draws, -1), seed=3, position=torch.arange(draws), top_p=0.95).token
    row = make_row(logits, {"top_p": 0.95})
    p = torch.tensor(row.weights, dtype=torch.float64) / row.mass
    counts = torch.bincount(tokens, minlength=40)
    assert not counts[p == 0].any()
    assert not exceeds(counts, p)
    assert exceeds(counts, torch.softmax(logits.double() * 1.1, 0))


def test_the_tail_of_the_noise_reaches_far_below_24_bits() -> None:
    # Of 131072 equal logits the token with the greatest noise comes up; over some rows that is an event of about 2^-29.
    V, position, token = 131072, 5553, 5128
    assert int(tokcore.sample(torch.zeros(1, V), seed=11, position=position).token) == token
    noise = token_noise(11, position, V)
    assert float(noise[token]) > 28.0  # 2^-28.5; noise of 24 bits ends at 24.5
    logits = torch.full((1, V), -INF)
    logits[0, token ^ 1] = 0.0
    rival = float(noise[token ^ 1])
    for gap, expected in ((28.0 - rival - 0.1, token), (float(noise[token]) - rival + 0.1, token ^ 1)):
        logits[0, token] = -gap * 0.6931471805599453
        assert int(tokcore.sample(logits, seed=11, position=position).token) == expected


def test_every_token_can_be_drawn() -> None:
    V = 1000
    tokens = tokcore.sample(torch.zeros(12000, V), seed=2, position=torch.arange(12000)).token
    assert len(tokens.unique()) == V


def test_noise_is_philox_by_seed_token_and_position() -> None:
    # The published known answers of Philox4x32-10.
    mask = (1 << 32) - 1
    assert [int(w) for w in philox(0, torch.tensor([0]), 0)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    every = philox(-1, torch.tensor([-1]), -1)
    assert [int(w) & mask for w in every] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_rows_do_not_depend_on_their_company() -> None:
    z = 3.0 * random(5, 5000)
    seeds, positions = torch.tensor([4, 4, -9, 2**62, 0]), torch.tensor([0, 1, 10**12, 3, 3])
    options: dict[str, Any] = {"top_p": 0.9, "top_k": torch.tensor([0, 5, 100, 1, 4999]), "return_entropy": True}
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(tokcore.sample(z, seed=seeds, position=positions, **options))
    for other in found[1:]:
        assert all(torch.equal(bits(a), bits(b)) for a, b in zip(found[0][:4], other[:4], strict=True) if a is not None)
    for b in range(5):
        alone = tokcore.sample(z[b : b + 1], seed=int(seeds[b]), position=int(positions[b]), top_p=0.9,
                               top_k=int(options["top_k"][b]), return_entropy=True)  # fmt: skip
        for mine, theirs in zip(alone[:4], found[0][:4], strict=True):
            assert mine is not None
            assert theirs is not None
            assert torch.equal(bits(mine), bits(theirs[b : b + 1]))


def test_positions_and_seeds_give_other_tokens() -> None:
    z = torch.zeros(1, 10**5)
    found = {int(tokcore.sample(z, seed=s, position=p).token) for s in (0, 1, 2**32) for p in (0, 1, 2**32)}
    assert len(found) == 9


def test_strided_logits() -> None:
    z = random(4, 2, 101)
    expected = tokcore.sample(z[:, 1].clone(), seed=0, position=0)
    assert torch.equal(tokcore.sample(z[:, 1], seed=0, position=0).token, expected.token)
    assert torch.equal(tokcore.sample(z[:, 1].T.contiguous().T, seed=0, position=0).token, expected.token)


def changed(request: int, column: int, value: float) -> Tensor:
    z = random(3, 40)
    z[request, column] = value
    return z


ROWS = torch.full((3, 2), -1, dtype=torch.int32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logits": changed(1, 39, NAN)}, "argument 'logits': expected numbers below inf, got NaN or inf in request 1"),
        ({"logits": changed(2, 0, INF)}, "argument 'logits': expected numbers below inf, got NaN or inf in request 2"),
        (
            {"logits": changed(1, 3, NAN), "allowed_bits": ROWS & 1},
            "argument 'logits': expected numbers below inf, got NaN or inf in request 1",
        ),
        (
            {"logits": torch.full((3, 40), -INF)},
            "argument 'logits': expected a logit above -inf, got none in request 0",
        ),
        (
            {"allowed_bits": ROWS * torch.tensor([[1], [1], [0]], dtype=torch.int32)},
            "argument 'allowed_bits': expected a token with a logit above -inf, got none in request 2",
        ),
        ({"top_p": 0.0}, "argument 'top_p': expected a value in (0, 1], got 0.0"),
        ({"top_p": NAN}, "argument 'top_p': expected a value in (0, 1], got nan"),
        (
            {"top_p": torch.tensor([0.5, 1.5, 1.0])},
            "argument 'top_p': expected a value in (0, 1], got another in request 1",
        ),
        (
            {"temperature": torch.tensor([0.5, -1.0, 1.0])},
            "argument 'temperature': expected a finite value >= 0, got another in request 1",
        ),
        ({"temperature": -1.0}, "argument 'temperature': expected a finite value >= 0, got -1.0"),
        ({"top_k": -1}, "argument 'top_k': expected a value >= 0, got -1"),
        ({"min_p": 1.5}, "argument 'min_p': expected a value in [0, 1], got 1.5"),
        ({"typical_mass": 0.0}, "argument 'typical_mass': expected a value in (0, 1], got 0.0"),
        ({"repetition_penalty": 1.1}, "argument 'token_counts': expected a Tensor with penalties, got None"),
        ({"frequency_penalty": torch.ones(3)}, "argument 'token_counts': expected a Tensor with penalties, got None"),
        (
            {"top_p": torch.ones(2)},
            "argument 'top_p': expected a number or a Tensor of shape [3] (B of logits), got [2]",
        ),
        ({"logits": random(3, 0)}, "argument 'logits': expected V >= 1, got 0"),
        ({"logits": random(3)}, "argument 'logits': expected 2 dimensions, got 1"),
        ({"seed": torch.zeros(2, dtype=torch.int64)}, "argument 'seed': expected shape [3] (B of logits), got [2]"),
        ({"allowed_bits": ROWS[:, :1]}, "argument 'allowed_bits': expected shape [3, 2] ([B, V/32 rounded up])"),
    ],
)
def test_bad_values(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"logits": random(3, 40), "seed": 0, "position": 0, **change}
    with pytest.raises(ValueError, match=re.escape(f"tokcore.sample: {words}")):
        tokcore.sample(given.pop("logits"), **given)


@pytest.mark.parametrize(
    "change",
    [
        {"logits": random(3, 40).double()},
        {"logits": [1.0]},
        {"seed": 1.0},
        {"position": torch.zeros(3)},
        {"temperature": "hot"},
        {"top_k": 1.5},
        {"token_counts": torch.zeros(3, 40, dtype=torch.int64)},
        {"validate": 1},
    ],
    ids=str,
)
def test_bad_types(change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"logits": random(3, 40), "seed": 0, "position": 0, **change}
    with pytest.raises(TypeError, match=r"tokcore\.sample: argument "):
        tokcore.sample(given.pop("logits"), **given)


def test_a_bad_request_leaves_the_others_alone() -> None:
    z = changed(1, 7, NAN)
    found = tokcore.sample(z, seed=0, position=torch.arange(3), validate=False, return_entropy=True)
    assert found.status.tolist() == [[0, 0], [1, 0], [0, 0]]
    assert found.token[1] == -1
    assert found.logprob.isnan().tolist() == [False, True, False]
    alone = tokcore.sample(z[2:], seed=0, position=2)
    assert found.token[2] == alone.token[0]
