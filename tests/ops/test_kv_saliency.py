"""``kv_saliency`` and the choice that ``kv_retier`` makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kv_support import by_position, filled, random
from support import bits, threads

import tokcore
from tokcore.reference.kv_cache import read_tier


def probes(T: int, N: int, B: int = 1) -> torch.Tensor:
    return torch.arange(N - T, N).expand(B, T)


def test_counts_are_exact() -> None:
    # Keys of zeros: each probe spreads its attention evenly over what it sees.
    scores = tokcore.kv_saliency(random(1, 3, 2, 32), torch.zeros(1, 6, 1, 32), torch.tensor([[1, 3, 3]]))
    expected = [1 / 3 * (1 / 2 + 1 / 4 + 1 / 4)] * 2 + [1 / 4] * 2 + [0.0] * 2
    torch.testing.assert_close(scores[0, 0], torch.tensor(expected), rtol=1e-6, atol=0)


def test_sums_add_up_to_the_probes() -> None:
    q, k = random(2, 30, 8, 64), random(2, 500, 2, 64, seed=1)
    scores = tokcore.kv_saliency(q, k, probes(30, 500, 2), reduce="sum")
    torch.testing.assert_close(scores.sum(-1), torch.full((2, 2), 120.0), rtol=1e-5, atol=0)


def test_an_lse_of_the_forward_pass_saves_the_first_sweep() -> None:
    q, k = random(1, 9, 4, 64), random(1, 300, 2, 64, seed=1)
    positions = probes(9, 300)
    z = torch.einsum("bthd,bnhd->bhtn", q, k.repeat_interleave(2, dim=2)) / 8.0
    z = z.masked_fill(torch.arange(300) > positions.unsqueeze(-1), float("-inf"))
    given = tokcore.kv_saliency(q, k, positions, lse=z.logsumexp(-1))
    torch.testing.assert_close(given, tokcore.kv_saliency(q, k, positions), rtol=1e-5, atol=1e-8)


def test_noise_is_a_function_of_the_seed() -> None:
    q, k = random(1, 9, 4, 64), random(1, 300, 2, 64, seed=1)
    call = [tokcore.kv_saliency(q, k, probes(9, 300), gumbel_seed=seed) for seed in (5, 5, 6)]
    assert torch.equal(call[0], call[1])
    assert not torch.equal(call[0], call[2])


@pytest.mark.parametrize("reduce", ["normalized_sum", "sum", "max", "decayed"])
def test_threads_change_no_bit(reduce: str) -> None:
    q, k = random(2, 70, 4, 96, dtype=torch.bfloat16), random(2, 333, 2, 96, seed=1, dtype=torch.bfloat16)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(tokcore.kv_saliency(q, k, probes(70, 333, 2), reduce=reduce, decay=0.9))
    assert all(torch.equal(bits(x), bits(found[0])) for x in found[1:])


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"reduce": "mean"}, ValueError, "argument 'reduce': expected 'normalized_sum' or 'sum' or 'max' or 'decayed'"),
        ({"decay": 0.0}, ValueError, "argument 'decay': expected a value in (0, 1], got 0.0"),
        ({"temperature": -1.0}, ValueError, "argument 'temperature': expected a finite value > 0, got -1.0"),
        ({"probe_positions": torch.zeros(1, 9)}, TypeError, "argument 'probe_positions': expected an integer dtype"),
        ({"probe_positions": torch.zeros(1, 8, dtype=torch.int64)}, ValueError, "argument 'probe_positions'"),
        (
            {"k": random(1, 30, 3, 64)},
            ValueError,
            "argument 'q_probe': expected H a positive multiple of 3 (Hkv), got 4",
        ),
        ({"k": random(1, 30, 2, 64).half()}, TypeError, "argument 'k': expected dtype float32 of q_probe, got float16"),
        ({"gumbel_seed": -1}, ValueError, "argument 'gumbel_seed'"),
    ],
)
def test_bad_arguments(change: dict[str, Any], error: type[Exception], words: str) -> None:
    given = {"q_probe": random(1, 9, 4, 64), "k": random(1, 30, 2, 64), "probe_positions": probes(9, 30), **change}
    with pytest.raises(error) as raised:
        tokcore.kv_saliency(**given)
    assert words in str(raised.value)


# ---- retier ----------------------------------------------------------------------------------------------------------

TIERS: dict[str, Any] = {"high": "int8", "low": "int2", "high_ratio": 0.5, "page_size": 16, "residual": 32, "sinks": 4}


def test_the_important_tokens_are_the_precise_ones() -> None:
    cache, _, _ = filled(400, **TIERS)
    scores = random(2, 2, 400, seed=9)
    high = tokcore.kv_retier(cache, 0, scores, ratio=0.3)
    for b in range(2):
        tokens = read_tier(cache, 0, "high", b)
        assert tokens.positions.size(1) == int(high[b])
        paged = scores[b, :, 4 : int(cache.layer(0).window_starts[b])]
        for head in range(2):
            expected = paged[head].topk(int(high[b])).indices.sort().values + 4
            assert torch.equal(tokens.positions[head], expected)
        assert by_position(cache, b).positions.tolist() == [list(range(400))] * 2


def test_mass_takes_the_fewest_tokens_that_hold_it() -> None:
    cache, _, _ = filled(400, **{**TIERS, "high_ratio": 0.2})
    scores = torch.full((2, 2, 400), 1e-3)
    scores[0, :, 50:70] = 1.0  # 20 tokens hold nearly all
    scores[1, :, 50:250:10] = 1.0
    high = tokcore.kv_retier(cache, 0, scores, mass=0.95)
    assert high.tolist() == [32, 32]
    assert set(range(50, 70)) <= set(read_tier(cache, 0, "high", 0).positions[0].tolist())


def test_a_mass_that_does_not_fit_raises_and_a_ratio_fills_the_tier() -> None:
    cache, _, _ = filled(400, **{**TIERS, "high_ratio": 0.2})
    room = cache.max_pages["high"]
    flat = torch.ones(2, 2, 400)
    before = [by_position(cache, b) for b in range(2)]
    expected = rf"argument 'mass': expected one that at most {room} pages hold \(room of the high tier\), got one that"
    with pytest.raises(ValueError, match=expected):
        tokcore.kv_retier(cache, 0, flat, mass=0.9)
    for b in range(2):
        assert all(torch.equal(a, c) for a, c in zip(by_position(cache, b), before[b], strict=True))
    assert tokcore.kv_retier(cache, 0, flat, ratio=0.9).tolist() == [room * cache.page_size] * 2


def test_codes_that_stay_are_the_same_bytes() -> None:
    cache, _, _ = filled(400, **TIERS)
    scores = random(2, 2, 400, seed=9)
    tokcore.kv_retier(cache, 0, scores, ratio=0.3)
    once = [by_position(cache, b) for b in range(2)]
    for _ in range(3):
        tokcore.kv_retier(cache, 0, scores, ratio=0.3)
    for b in range(2):
        assert all(torch.equal(a, c) for a, c in zip(by_position(cache, b), once[b], strict=True))


def test_retier_needs_two_tiers_and_one_measure() -> None:
    single, _, _ = filled(100, high="int8", low=None)
    with pytest.raises(ValueError, match=r"argument 'cache': expected a cache with two tiers, got high='int8'"):
        tokcore.kv_retier(single, 0, random(2, 2, 100), ratio=0.5)
    cache, _, _ = filled(400, **TIERS)
    with pytest.raises(ValueError, match=r"argument 'ratio': expected one of ratio and mass, got ratio=None"):
        tokcore.kv_retier(cache, 0, random(2, 2, 400))
    with pytest.raises(ValueError, match=r"argument 'scores': expected N >= \d+ \(positions in pages\), got 100"):
        tokcore.kv_retier(cache, 0, random(2, 2, 100), ratio=0.5)
    with pytest.raises(ValueError, match=r"argument 'mass': expected a value in \(0, 1\], got 1.5"):
        tokcore.kv_retier(cache, 0, random(2, 2, 400), mass=1.5)
