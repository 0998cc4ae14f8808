"""Interleaved timing: every contestant runs once a round, so that a machine that changes its speed does so for all.

Ratios are medians of per-round ratios (both sides of each pair ran within one round), never ratios of two medians.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Samples = dict[int, float]  # round -> seconds


@dataclass(frozen=True)
class Contestant:
    """One closure to time; ``calls`` are copies of it on separate buffers, taken in turn from round to round."""

    name: str
    calls: Sequence[Callable[[], Any]]
    slow: bool = False  # runs in few rounds only
    paced: bool = True  # an untimed call, on the next buffers, goes before each timed one
    timed: str = "wall clock"  # how


@dataclass(frozen=True)
class Summary:
    """Order statistics of the samples of one contestant, in seconds."""

    median: float
    lower_quartile: float
    upper_quartile: float
    rounds: int

    @property
    def iqr(self) -> float:
        """Interquartile range."""
        return self.upper_quartile - self.lower_quartile


def interleave(
    contestants: Sequence[Contestant],
    seconds: float,
    *,
    min_rounds: int = 5,
    max_rounds: int = 1000,
    slow_rounds: int = 3,
    limit: float = float("inf"),
    clock: Callable[[], float] = time.perf_counter,
    seconds_of: Callable[[Callable[[], Any]], float] | None = None,
    on_call: Callable[[float], None] = lambda _: None,
) -> dict[str, Samples]:
    """Times the contestants round-robin until ``seconds`` have passed, at least ``min_rounds`` rounds.

    After ``limit`` seconds no further round begins, be there ``min_rounds`` or not; ``seconds_of`` times a call where
    ``clock`` cannot.

    Each round starts one contestant later than the round before, so that nobody always follows a pause. A slow
    contestant takes part in every other round until it has ``slow_rounds`` samples or has used up ``seconds`` alone.
    The caller warms the closures up. An untimed call, on the next buffers, goes before each timed one of a contestant
    that is paced and not slow: else whoever follows a contestant that gave back gigabytes would pay for getting memory
    again. The time of a call includes giving back its result. ``on_call`` is told the estimated fraction done.
    """
    if not contestants:
        return {}

    def by_clock(call: Callable[[], Any]) -> float:
        before = clock()
        call()
        return clock() - before

    time_call = seconds_of or by_clock
    samples: dict[str, Samples] = {contestant.name: {} for contestant in contestants}
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    start = clock()
    try:
        for number in range(max_rounds):
            passed = clock() - start
            if (number >= min_rounds and passed >= seconds) or (number > 0 and passed >= limit):
                break
            shift = number % len(contestants)
            for contestant in (*contestants[shift:], *contestants[:shift]):
                taken = samples[contestant.name]
                enough = len(taken) >= slow_rounds or (bool(taken) and sum(taken.values()) >= seconds)
                if contestant.slow and (number % 2 or enough):
                    continue
                call = contestant.calls[number % len(contestant.calls)]
                if contestant.paced and not contestant.slow:
                    contestant.calls[(number + 1) % len(contestant.calls)]()
                taken[number] = time_call(call)
                by_time = (clock() - start) / seconds if seconds > 0 else 1.0
                on_call(min(1.0, by_time, (number + 1) / min_rounds))
    finally:
        if was_enabled:
            gc.enable()
    on_call(1.0)
    return samples


def summarize(samples: Mapping[int, float]) -> Summary:
    """Median and quartiles (linear interpolation between samples)."""
    values = sorted(samples.values())
    if not values:
        raise ValueError("no samples to summarize")
    if len(values) == 1:
        return Summary(values[0], values[0], values[0], 1)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, lower, upper, len(values))


def paired_ratio(slower: Mapping[int, float], faster: Mapping[int, float]) -> float | None:
    """Median over the common rounds of ``slower / faster``: how many times faster the second is; None without one."""
    ratios = [slower[number] / faster[number] for number in slower.keys() & faster.keys() if faster[number] > 0]
    return statistics.median(ratios) if ratios else None
