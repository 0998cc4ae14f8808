"""Generation over every cache, step by step side by side, and the latency of a step against the cached length."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokcore.demo.cached_model import CachedTransformer
from tokcore.demo.kv_cache.schemes import Calibration, Scheme, cached, take_prompt
from tokcore.demo.model import Transformer
from tokcore.demo.progress import Progress


@dataclass(frozen=True)
class Generated:
    """Greedy continuation of a prompt: its tokens and the median seconds of a step."""

    scheme: str
    tokens: tuple[int, ...]
    step_seconds: float


@dataclass(frozen=True)
class Latency:
    """Median seconds of one decoded token of the whole model at ``length`` cached tokens."""

    scheme: str
    length: int
    seconds: float


class _Clock:
    """Times the steps of several models, which take turns in rotating order."""

    def __init__(self, count: int) -> None:
        self.seconds: list[list[float]] = [[] for _ in range(count)]

    def turn(self, index: int) -> list[int]:
        count = len(self.seconds)
        return [(index + offset) % count for offset in range(count)]

    def step(self, which: int, run: CachedTransformer, token: Tensor) -> Tensor:
        start = time.perf_counter()
        chosen = run.logits(run(token)).argmax(-1)
        self.seconds[which].append(time.perf_counter() - start)
        return chosen


def generate_side_by_side(
    model: Transformer,
    schemes: Sequence[Scheme],
    prompt: Tensor,
    count: int,
    calibration: Calibration,
    changes: dict[str, int],
    progress: Progress,
) -> list[Generated]:
    """Continues ``prompt`` [1, T] by ``count`` tokens over each cache, the most probable one every time."""
    runs = []
    for scheme in schemes:
        chosen = {**changes, "page_size": 32} if scheme.options.get("group") == 32 else changes
        runs.append(cached(model, scheme, 1, prompt.size(1) + count, calibration, **chosen))
    latest = []
    for run, scheme in zip(runs, schemes, strict=True):
        hidden = take_prompt(run, scheme, prompt, seed=0)
        latest.append(run.logits(hidden[:, -1:]).argmax(-1))
    found: list[list[int]] = [[int(token)] for token in latest]
    clock = _Clock(len(runs))
    with progress.stage("generating over every cache", count - 1) as stage:
        for index in range(count - 1):
            for which in clock.turn(index):
                latest[which] = clock.step(which, runs[which], latest[which])
                found[which].append(int(latest[which]))
            stage.advance()
    return [
        Generated(scheme.name, tuple(tokens), statistics.median(seconds))
        for scheme, tokens, seconds in zip(schemes, found, clock.seconds, strict=True)
    ]


def measure_latency(
    model: Transformer,
    schemes: Sequence[Scheme],
    lengths: Sequence[int],
    rounds: int,
    calibration: Calibration,
    progress: Progress,
) -> list[Latency]:
    """A step of every cache at every length. The caches hold random numbers: what they are changes no step's time."""
    results = []
    generator = torch.Generator().manual_seed(0)
    token = torch.zeros(1, 1, dtype=torch.int64)
    with progress.stage("latency by length", len(lengths)) as stage:
        for length in lengths:
            runs = [cached(model, scheme, 1, length + rounds + 1, calibration) for scheme in schemes]
            shape = (1, length, model.config.num_kv_heads, model.config.head_dim)
            k, v = (torch.randn(shape, generator=generator).to(model.compute_dtype) for _ in range(2))
            for run in runs:
                for layer in range(run.cache.layers):
                    run.cache.append(layer, k, v)
                run(token)  # not timed: memory is touched for the first time
            clock = _Clock(len(runs))
            for index in range(rounds):
                for which in clock.turn(index):
                    clock.step(which, runs[which], token)
            medians = [statistics.median(seconds) for seconds in clock.seconds]
            results += [Latency(scheme.name, length, seconds) for scheme, seconds in zip(schemes, medians, strict=True)]
            note = ", ".join(f"{scheme.name} {1e3 * s:.1f} ms" for scheme, s in zip(schemes, medians, strict=True))
            stage.advance(f"{length} tokens: {note}")
    return results
