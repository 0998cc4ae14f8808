"""The meaning of sampling from a row of logits: a distribution as whole numbers, and the noise that draws from it.

Everything is fp64 in the fixed form that the kernels follow, one correctly rounded operation at a time, so that results
are the kernels' bit for bit. How near the whole numbers are to probabilities is for the tests to say.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TOKENS, ACCEPTS, DRAWS, DRAFTS = range(4)  # streams of random numbers; the i-th of independent drafts: DRAFTS + i
_MASK = (1 << 32) - 1
_LOG2_E = 1.4426950408889634
_LN_2 = 0.6931471805599453
_EXP2 = [math.log(2) ** k / math.factorial(k) for k in range(12, 0, -1)] + [1.0]
_LOG2 = [1.0 / k for k in range(21, 2, -2)] + [1.0]

SETTINGS = ("temperature", "top_k", "top_p", "min_p", "typical_mass", "repetition", "presence", "frequency")
DEFAULTS = dict(zip(SETTINGS, (1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0), strict=True))


class BadRowError(ValueError):
    """A row that nothing can be drawn from."""


# ---- numbers ---------------------------------------------------------------------------------------------------------


def weight_bits(V: int) -> int:
    """The greatest weight is two to this power: so that V of them stay below 2^62."""
    return min(50, 62 - (V - 1).bit_length())


def scaled_exp2(y: Tensor, bits: int) -> Tensor:
    """2^(y + bits) for y <= 0, rounded to a whole number; float64."""
    y = y.clamp(min=-70.0)
    n = y.round()
    f = y - n
    p = torch.full_like(f, _EXP2[0])
    for coefficient in _EXP2[1:]:
        p = p * f + coefficient
    return torch.ldexp(p, n + bits).round()


def log2(a: Tensor) -> Tensor:
    """log2 of normal float64 numbers above 0."""
    steps = (a.view(torch.int64) - 0x3FE6A09E667F3BCD) >> 52
    m = (a.view(torch.int64) - (steps << 52)).view(torch.float64)
    return steps.to(torch.float64) + _log2_by_series((m - 1.0) / (m + 1.0))


def _log2_by_series(s: Tensor) -> Tensor:
    square = s * s
    total = torch.full_like(s, _LOG2[0])
    for coefficient in _LOG2[1:]:
        total = total * square + coefficient
    return total * s * 2.8853900817779268


def philox(seed: int, low: Tensor, high: int) -> list[Tensor]:
    """Philox4x32-10 of counters (low, high), int64 words below 2^32; ``low`` int64, 64 bits of counter."""
    x = [low & _MASK, (low >> 32) & _MASK, torch.full_like(low, high & _MASK)]
    x.append(torch.full_like(low, (high >> 32) & _MASK))
    key = [seed & _MASK, (seed >> 32) & _MASK]
    for _ in range(10):
        left, right = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]  # wraps: the bits of the unsigned product
        x = [(right >> 32 & _MASK) ^ x[1] ^ key[0], right & _MASK, (left >> 32 & _MASK) ^ x[3] ^ key[1], left & _MASK]
        key = [(key[0] + 0x9E3779B9) & _MASK, (key[1] + 0xBB67AE85) & _MASK]
    return x


def random_bits(seed: int, stream: int, index: int, position: int) -> int:
    """64 bits for one decision."""
    words = philox(seed, torch.tensor([stream << 32 | index]), position)
    return int(words[0]) << 32 | int(words[1])


def unit_interval(bits: int) -> float:
    """One of 2^53 numbers in [0, 1)."""
    return (bits >> 11) * 2.0**-53


def gumbel_log2(high: Tensor, low: Tensor) -> Tensor:
    """-log2(-log2(1 - x)), x the middle of the part of (0, 1) that 64 bits, high and low words of 32, name."""

    def middle(upper: Tensor, lower: Tensor) -> Tensor:
        return ((upper << 31 | lower >> 1).to(torch.float64) + (0.25 + 0.5 * (lower & 1))) * 2.0**-63

    x, complement = middle(high, low), middle(high ^ _MASK, low ^ _MASK)
    return -log2(torch.where(x < 0.25, _log2_by_series(x / (2.0 - x)), -log2(complement)))


def token_noise(seed: int, position: int, V: int, stream: int = TOKENS) -> Tensor:
    """Gumbel noise of every token, float64 [V], in units of ln 2."""
    words = philox(seed, torch.arange((V + 1) // 2) | stream << 32, position)
    high, low = torch.stack([words[0], words[2]], 1).flatten(), torch.stack([words[1], words[3]], 1).flatten()
    return gumbel_log2(high[:V], low[:V])


# ---- a row -----------------------------------------------------------------------------------------------------------


def penalise(z: Tensor, counts: Tensor, repetition: float, presence: float, frequency: float) -> Tensor:
    """fp32 logits of tokens that stand in the text ``counts`` times."""
    r, p, f = (torch.tensor(x, dtype=torch.float32) for x in (repetition, presence, frequency))
    changed = torch.where(z > 0, z / r, z * r) - f * counts.to(torch.float32) - p
    return torch.where(counts > 0, changed, z)


def allowed_tokens(words: Tensor, V: int) -> Tensor:
    """bool [V] of the bits of int32 words."""
    return (words.to(torch.int64).unsqueeze(-1) >> torch.arange(32) & 1).flatten()[:V].bool()


@dataclass(frozen=True)
class Row:
    """The distribution of a row: weights / mass."""

    weights: list[int]  # [V], 0 for what cannot be drawn
    kept: Tensor  # bool [V]
    distance: Tensor  # float64 [V], (greatest - z) * slope
    greedy: bool

    @property
    def mass(self) -> int:
        """The sum of the weights."""
        return sum(self.weights)

    @property
    def bits(self) -> int:
        """Of the greatest weight there can be."""
        return weight_bits(len(self.weights))

    def sums(self) -> tuple[int, int]:
        """Of w y and w y^2, y = ``distance`` in whole numbers."""
        return _sums(torch.tensor(self.weights, dtype=torch.float64), self.distance)

    def logprob(self, token: int) -> float:
        """ln p."""
        return float(torch.tensor((-float(self.distance[token]) - self._log2_mass()) * _LN_2, dtype=torch.float32))

    def _log2_mass(self) -> float:
        return float(log2(torch.tensor([float(self.mass)], dtype=torch.float64))) - self.bits

    def entropy(self) -> float:
        """-sum p ln p."""
        return max(self._log2_mass() + self.sums()[0] / float(self.mass), 0.0) * _LN_2

    def varentropy(self) -> float:
        """sum p (ln p)^2 - entropy^2."""
        first, second = (float(x) / float(self.mass) for x in self.sums())
        return max(second - first * first, 0.0) * 0.4804530139182014

    def coupled_token(self, seed: int, position: int) -> int:
        """The greatest of log-probability plus noise; of equal ones the first."""
        if self.greedy:
            return self.weights.index(self.mass)
        score = -self.distance + token_noise(seed, position, len(self.weights))
        return int(torch.where(self.kept, score, float("-inf")).argmax())


def _sums(weights: Tensor, distance: Tensor) -> tuple[int, int]:
    bounded = distance.clamp(max=70.0)
    first = (weights * bounded).round()
    second = (weights * bounded * bounded).round()
    return int(first.to(torch.int64).sum()), int(second.to(torch.int64).sum())


def _least_kept(ranks: Tensor, weights: Tensor, needed: int) -> Tensor:
    """Which elements have at least the greatest rank r such that those of rank r or more weigh ``needed``."""
    order = ranks.argsort(descending=True)
    reached = weights[order].cumsum(0) >= needed
    least = ranks[order[int(reached.to(torch.int8).argmax())]] if bool(reached.any()) else ranks.min()
    return ranks >= least


def _share(mass: int, share: float) -> int:
    return min(max(int(float(mass) * share), 1), mass)


def make_row(
    logits: Tensor,
    settings: dict[str, float],
    counts: Tensor | None = None,
    allowed: Tensor | None = None,
) -> Row:
    """The distribution of logits [V]: penalties by counts [V], allowed bool [V], then the options in order."""
    s = {**DEFAULTS, **settings}
    z = logits.to(torch.float32)
    if counts is not None:
        z = penalise(z, counts, s["repetition"], s["presence"], s["frequency"])
    if not bool((z < float("inf")).all()):
        raise BadRowError("numbers below inf")
    if not bool((z > float("-inf")).any()):
        raise BadRowError("a logit above -inf")
    if allowed is not None:
        z = torch.where(allowed, z, float("-inf"))
    kept = z > float("-inf")
    if not bool(kept.any()):
        raise BadRowError("a token with a logit above -inf")
    V, bits = len(z), weight_bits(len(z))
    greatest = z.max().to(torch.float64)
    if s["temperature"] == 0.0:
        first = int(z.argmax())
        weights = [0] * V
        weights[first] = 1 << bits
        return Row(weights, z == greatest, torch.zeros(V, dtype=torch.float64), True)
    slope = min(_LOG2_E / s["temperature"], 1e30)
    distance = (greatest - z.to(torch.float64)) * slope
    every = scaled_exp2(-distance, bits)

    def weights_now() -> Tensor:
        return torch.where(kept, every, 0.0).to(torch.int64)

    if 1 <= s["top_k"] < V:
        kept = kept & (_least_kept(z, kept.to(torch.int64), int(s["top_k"])))
    if s["top_p"] < 1.0:
        now = weights_now()
        kept = kept & _least_kept(z, now, _share(int(now.sum()), s["top_p"]))
    if s["min_p"] > 0.0:
        kept = kept & ((every >= s["min_p"] * 2.0**bits) | (z == greatest))
    if s["typical_mass"] < 1.0:
        now = weights_now()
        mean = float(_sums(now.to(torch.float64), torch.where(kept, distance, 0.0))[0]) / float(int(now.sum()))
        nearness = -(distance - mean).abs().to(torch.float32)
        nearness = torch.where(now > 0, nearness, float("-inf"))
        near = _least_kept(nearness, now, _share(int(now.sum()), s["typical_mass"])) & (now > 0)
        kept = kept & (z >= z[near].min()) & (z <= z[near].max())
    return Row([int(w) for w in weights_now()], kept, distance, False)


def draw(weights: Sequence[int], bits: int) -> int:
    """The first index at which the running sum of weights exceeds bits * sum / 2^64."""
    left = bits * sum(weights) >> 64
    for index, weight in enumerate(weights):
        if left < weight:
            return index
        left -= weight
    raise AssertionError("the draw lies below the sum")
