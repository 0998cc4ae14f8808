"""How far to draft: by the chance that a draft is wrong already, and by what a step costs on this machine."""

from __future__ import annotations

import itertools
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from tokcore.ops import _checks as checks


@dataclass(frozen=True)
class LengthPolicy:
    """SpecDec++: a path is drafted further until the chance that one of its tokens is wrong exceeds ``threshold``.

    A node at depth d with the product Π of acceptance chances along its path gets children if d < ``least``, or if
    d < ``most`` and 1 - Π <= ``threshold``. The draft model's probability of a token serves as its chance (SpecDec++
    trains a head for it). Source: SpecDec++ (arXiv 2405.19715).
    """

    threshold: float = 0.3
    least: int = 2
    most: int = 20

    def __post_init__(self) -> None:
        require = checks.wrapper_require("speculative.LengthPolicy")
        inside = 0.0 <= self.threshold <= 1.0
        require(inside, "threshold", lambda: "a value in [0, 1]", lambda: f"{self.threshold}")
        checks.check_count(require, "most", self.most, 1, 256, "depth")
        checks.check_count(require, "least", self.least, 0, self.most, "most")

    def grows(self, depth: int, joint: float) -> bool:
        """Whether a node at this depth, with this product, gets children."""
        return depth < self.least or (depth < self.most and joint >= 1.0 - self.threshold)


class ThroughputBudget:
    """Chooses a tree's size by tokens a second, from costs and acceptance measured while it generates.

    Builders order nodes by value, so that a budget of n keeps the first n: a step with m nodes tells what every n <= m
    would have accepted. Costs are medians of the last steps of each size, with a line through them where a size was not
    tried. First every size runs once; then the size with the greatest tokens / cost runs, and every ``refresh`` steps
    the largest and the smallest do. Size 1 is plain decoding and always among them: a tree that loses to it under load
    is dropped.

    Args:
        sizes: nodes to choose among, ascending, the first 1.
        memory: weight of what was known of acceptance against a new step, in [0, 1).
        refresh: steps between two trials.
    """

    def __init__(
        self, sizes: Sequence[int] = (1, 8, 16, 24, 32, 48, 64, 81), memory: float = 0.95, refresh: int = 64
    ) -> None:
        require = checks.wrapper_require("speculative.ThroughputBudget")
        ascending = bool(sizes) and sizes[0] == 1 and all(a < b for a, b in itertools.pairwise(sizes))
        require(ascending, "sizes", lambda: "ascending sizes from 1 on", lambda: f"{sizes}")
        require(0.0 <= memory < 1.0, "memory", lambda: "a value in [0, 1)", lambda: f"{memory}")
        checks.check_count(require, "refresh", refresh, 2, 2**31, "steps")
        self.sizes, self.memory, self.refresh = tuple(sizes), memory, refresh
        self._costs: dict[int, deque[float]] = {size: deque(maxlen=16) for size in self.sizes}
        self._tokens: dict[int, float] = {}
        self._steps = 0

    def choose(self, most: int) -> int:
        """Nodes of the next tree, at most ``most``."""
        allowed = [size for size in self.sizes if size <= max(most, 1)]
        untried = [size for size in allowed if not self._costs[size]]
        if untried:
            return untried[-1]
        if self._steps % self.refresh == 0:
            return allowed[-1]
        if self._steps % self.refresh == 1:
            return allowed[0]
        return max(allowed, key=lambda size: self.tokens_of(size) / self.cost_of(size))

    def observe(self, size: int, accepted: Sequence[Sequence[int]], seconds: float) -> None:
        """A step with budget ``size``: the accepted nodes of every request that had a tree, and what it took."""
        self._steps += 1
        self._costs[size].append(seconds)
        for other in self.sizes:
            if other > size or not accepted:
                continue
            found = sum(1 + sum(0 < node < other for node in path) for path in accepted) / len(accepted)
            known = self._tokens.get(other, found)
            self._tokens[other] = self.memory * known + (1.0 - self.memory) * found

    def tokens_of(self, size: int) -> float:
        """Expected tokens of a step and request."""
        return self._tokens.get(size, 1.0)

    def cost_of(self, size: int) -> float:
        """Expected seconds of a step: the median where the size was tried, else a line through the others."""
        if self._costs[size]:
            return statistics.median(self._costs[size])
        known = {other: statistics.median(times) for other, times in self._costs.items() if times}
        if len(known) < 2:
            return next(iter(known.values()), 1.0)
        line = statistics.linear_regression(list(known), list(known.values()))
        return max(line.intercept + line.slope * size, min(known.values()))


@dataclass(frozen=True)
class EntropySwitch:
    """Entropy-adaptive decoding: easy stretches by a small model, hard ones by the large one. Not lossless.

    The mean entropy, in nats, of the last ``window`` distributions that tokens of a request were taken from decides,
    request by request, who makes the next step: up to ``threshold`` the small model, above it the large one; the large
    one begins, and after a switch the same model makes at least ``least`` steps. A model that comes back first reads
    what it missed. Source: Entropy Adaptive Decoding (arXiv 2502.06833).
    """

    small: object  # a SpeculativeModel of the same vocabulary
    threshold: float = 1.0
    window: int = 5
    least: int = 3

    def __post_init__(self) -> None:
        require = checks.wrapper_require("speculative.EntropySwitch")
        require(self.threshold >= 0.0, "threshold", lambda: "a value >= 0", lambda: f"{self.threshold}")
        checks.check_count(require, "window", self.window, 1, 2**31, "tokens")
        checks.check_count(require, "least", self.least, 1, 2**31, "steps")
