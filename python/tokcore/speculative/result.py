"""What a generation returns."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from tokcore.speculative.drafter import Draft
from tokcore.verdict import Verdict

PARTS = ("prefill", "draft", "forward", "verify", "compact")
"""Where a generation's time goes. ``draft`` counts the drafter's learning too."""


@dataclass(frozen=True)
class Step:
    """One step, for whoever watches."""

    draft: Draft
    verdict: Verdict
    tokens: list[list[int]]  # new tokens of every request; empty where it had no tree


@dataclass
class GenerationStatistics:
    """What happened on the way."""

    accepted: list[list[int]] = field(default_factory=list)
    """By request, for each of its steps: drafted tokens that were kept; a step makes one token more."""

    nodes: list[int] = field(default_factory=list)
    """By step: nodes of all trees together."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    """By part of :data:`PARTS`."""

    small_steps: int = 0
    """Steps of requests that the small model of an EntropySwitch made."""

    new_tokens: int = 0
    """Tokens of all requests that were returned."""

    @property
    def steps(self) -> int:
        """Forward passes of the model."""
        return len(self.nodes)

    @property
    def total_seconds(self) -> float:
        """All of :attr:`seconds`."""
        return sum(self.seconds.values())

    @property
    def tokens_per_second(self) -> float:
        """New tokens of all requests over the time after the prompts."""
        after = self.total_seconds - self.seconds["prefill"]
        return self.new_tokens / after if after > 0 else 0.0

    @property
    def mean_accepted(self) -> float:
        """Drafted tokens kept a step, over all requests."""
        counts = [count for request in self.accepted for count in request]
        return sum(counts) / len(counts) if counts else 0.0


@dataclass(frozen=True)
class GenerationResult:
    """New tokens of every request, int64, the stop token among them; and how they came about."""

    tokens: list[Tensor]
    statistics: GenerationStatistics
