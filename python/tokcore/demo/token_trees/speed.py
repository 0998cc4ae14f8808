"""Greedy generation by every drafter, in turns, so that whatever else the machine does meets all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tokcore.demo.progress import Progress
from tokcore.demo.token_trees.model import DemoModel
from tokcore.speculative import Drafter, GenerationResult, Step, ThroughputBudget, generate

PLAIN = "plain decoding"
ALWAYS = "always "  # begins the name of a drafter that drafts whatever it costs


@dataclass
class Method:
    """A way to generate. The drafter and what is known of costs stay from one generation to the next."""

    name: str
    drafter: Drafter | None
    budget: ThroughputBudget | None
    rates: list[float] = field(default_factory=list)  # new tokens a second, by generation
    accepted: list[int] = field(default_factory=list)  # by step
    nodes: list[int] = field(default_factory=list)  # by step
    seconds: dict[str, float] = field(default_factory=dict)  # by part, all generations
    differing: int = 0  # generations that differ from plain decoding

    @property
    def rate(self) -> float:
        """Median tokens a second."""
        return statistics.median(self.rates)

    @property
    def mean_accepted(self) -> float:
        """Drafted tokens kept a step."""
        return statistics.fmean(self.accepted)


@dataclass(frozen=True)
class DrawnStep:
    """A step worth a picture."""

    tokens: list[int]
    parents: list[int]
    accepted: list[int]


def make_methods(draft: DemoModel, drafters: Callable[[DemoModel], dict[str, Drafter]]) -> list[Method]:
    """Plain decoding first; every drafter with a budget chosen by measured throughput, unless told otherwise."""
    sizes = (1, 4, 8, 16, 24, 32, 48, 64, 81)
    methods = [Method(PLAIN, None, None)]
    for name, drafter in drafters(draft).items():
        fitting = [*(size for size in sizes if size < drafter.max_nodes), drafter.max_nodes]
        budget = None if name.startswith(ALWAYS) else ThroughputBudget(fitting)
        methods.append(Method(name, drafter, budget))
    return methods


def ratio_to_plain(method: Method, methods: list[Method]) -> float:
    """Median over generations of its rate over plain decoding's in the same turn."""
    return statistics.median(mine / plain for mine, plain in zip(method.rates, methods[0].rates, strict=True))


def generate_in_turns(
    model: DemoModel, methods: list[Method], prompts: Tensor, new_tokens: int, rounds: int, progress: Progress
) -> tuple[list[Tensor], DrawnStep | None]:
    """Fills in ``methods``; returns what plain decoding wrote, and the step of the first drafter that kept most.

    The first round is the drafters' own: tables fill, budgets are tried; it counts for identity, not for speed.
    """
    texts: list[Tensor] = []
    watcher = _Watcher()
    with progress.stage("drafting and verifying", (rounds + 1) * len(prompts) * len(methods)) as stage:
        for turn in range(rounds + 1):
            for index, prompt in enumerate(prompts):
                shift = (turn + index) % len(methods) if texts[index:] else 0
                for method in (*methods[shift:], *methods[:shift]):
                    watched = watcher.see if method is methods[1] else None
                    start = time.perf_counter()
                    result = generate(
                        model,
                        prompt.unsqueeze(0),
                        max_new_tokens=new_tokens,
                        drafter=method.drafter,
                        budget=method.budget,
                        on_step=watched,
                    )
                    if method.drafter is None and not texts[index:]:
                        texts.append(result.tokens[0])
                    method.differing += not torch.equal(result.tokens[0], texts[index])
                    if turn > 0:
                        _note(method, result)
                    stage.advance(f"{method.name} {new_tokens / (time.perf_counter() - start):.0f} tokens/s")
    return texts, watcher.best


def _note(method: Method, result: GenerationResult) -> None:
    found = result.statistics
    method.rates.append(found.tokens_per_second)
    method.accepted += found.accepted[0]
    method.nodes += found.nodes
    for part, seconds in found.seconds.items():
        method.seconds[part] = method.seconds.get(part, 0.0) + seconds


class _Watcher:
    """Keeps the step that is nicest to look at: most different tokens kept from a tree that fits a page."""

    def __init__(self) -> None:
        self.best: DrawnStep | None = None
        self._variety = 0

    def see(self, step: Step) -> None:
        tree, verdict = step.draft.tree, step.verdict
        count, kept = int(tree.counts[0]), int(verdict.accepted_counts[0])
        tokens, nodes = tree.tokens[0, :count].tolist(), verdict.accepted_nodes[0, :kept].tolist()
        variety = len({tokens[node] for node in nodes})
        if 4 <= count <= 32 and variety > self._variety:
            self._variety = variety
            self.best = DrawnStep(tokens, tree.parents[0, :count].tolist(), nodes)
