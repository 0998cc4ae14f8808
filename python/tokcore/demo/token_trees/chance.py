"""Are drafted samples ordinary samples? Other seeds must give the same distribution, and the coupled rule with the same
seeds the same tokens."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from tokcore.demo.progress import Progress
from tokcore.demo.token_trees.model import DemoModel
from tokcore.speculative import Drafter, generate

SAMPLED = 3  # tokens of a continuation
FALSE_ALARM = 1e-6
LEAST_EXPECTED = 8.0  # continuations in a cell of the test


@dataclass(frozen=True)
class ChiSquare:
    """Two sets of sampled continuations compared."""

    name: str  # of the drafter and its rule
    samples: int  # of each set
    cells: int
    statistic: float
    p_value: float
    same_seed_differing: int | None  # continuations that differ with equal seeds; None: the rule draws otherwise

    @property
    def passed(self) -> bool:
        """No difference found."""
        return self.p_value >= FALSE_ALARM and not self.same_seed_differing


@dataclass(frozen=True)
class Sampling:
    """How continuations are drafted and drawn."""

    name: str
    drafter: Drafter
    rule: str
    temperature: float
    batches: int
    batch: int


def compare_samples(model: DemoModel, sampling: Sampling, prompt: Tensor, progress: Progress) -> ChiSquare:
    """χ² of homogeneity between continuations sampled through trees and one by one, three tokens each."""
    batches, batch = sampling.batches, sampling.batch

    def sample(drafted: bool, first_seed: int) -> list[tuple[int, ...]]:
        result = generate(
            model,
            prompt.expand(batch, -1),
            max_new_tokens=SAMPLED,
            drafter=sampling.drafter if drafted else None,
            rule=sampling.rule,
            temperature=sampling.temperature,
            seed=torch.arange(first_seed, first_seed + batch),
        )
        return [tuple(row.tolist()) for row in result.tokens]

    drafted: list[tuple[int, ...]] = []
    ordinary: list[tuple[int, ...]] = []
    differing = 0 if sampling.rule == "coupled" else None
    with progress.stage(f"sampling by {sampling.name} and without trees", batches) as stage:
        for index in range(batches):
            first = index * batch
            trees = sample(True, first)
            if differing is not None:
                differing += sum(a != b for a, b in zip(trees, sample(False, first), strict=True))
            drafted += trees
            ordinary += sample(False, first + batches * batch)
            stage.advance(f"{len(drafted)} continuations of {SAMPLED} tokens")
    return chi_square(sampling.name, drafted, ordinary, differing)


def chi_square(
    name: str, left: list[tuple[int, ...]], right: list[tuple[int, ...]], differing: int | None
) -> ChiSquare:
    """Cells are the tokens (first, second, third), rare ones merged by their beginnings until each is large enough."""
    cells = _cells(left, right)
    pairs = [(sum(counts[0]), sum(counts[1])) for counts in cells]
    total = sum(a + b for a, b in pairs)
    share = len(left) / total
    statistic = 0.0
    for a, b in pairs:
        expected = (a + b) * share, (a + b) * (1.0 - share)
        statistic += (a - expected[0]) ** 2 / expected[0] + (b - expected[1]) ** 2 / expected[1]
    freedom = max(1, len(pairs) - 1)
    p_value = float(torch.special.gammaincc(torch.tensor(freedom / 2).double(), torch.tensor(statistic / 2).double()))
    return ChiSquare(name, len(left), len(pairs), statistic, p_value, differing)


def _cells(left: list[tuple[int, ...]], right: list[tuple[int, ...]]) -> list[tuple[list[int], list[int]]]:
    """Counts of both sides by cell; a beginning that is too rare to be split joins its siblings."""
    found: list[tuple[list[int], list[int]]] = []

    def split(prefix: tuple[int, ...], mine: list[tuple[int, ...]], theirs: list[tuple[int, ...]]) -> None:
        depth = len(prefix)
        if depth == SAMPLED:
            found.append(([len(mine)], [len(theirs)]))
            return
        sizes = Counter(row[depth] for row in (*mine, *theirs))
        large = [token for token, size in sizes.items() if size / 2 >= LEAST_EXPECTED]
        for token in large:
            split(
                (*prefix, token),
                [row for row in mine if row[depth] == token],
                [row for row in theirs if row[depth] == token],
            )
        rest = [sum(row[depth] not in large for row in side) for side in (mine, theirs)]
        if sum(rest):
            found.append(([rest[0]], [rest[1]]))

    split((), left, right)
    # Remainders may be small: those join until their cell is large enough.
    enough = [cell for cell in found if sum(cell[0]) + sum(cell[1]) >= 2 * LEAST_EXPECTED]
    small = [cell for cell in found if sum(cell[0]) + sum(cell[1]) < 2 * LEAST_EXPECTED]
    if small:
        merged = ([sum(sum(cell[0]) for cell in small)], [sum(sum(cell[1]) for cell in small)])
        enough.append(merged)
    return enough
