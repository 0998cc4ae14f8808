"""Every outcome of a rule of verification, enumerated: ``python -m tokcore.testing.lossless`` prints the table.

For random targets p and drafts q over a small vocabulary, every way in which k children can be drawn is taken with its
probability, every test of a child with the probability that it passes, and the draw after them with its weights. That
gives the exact distribution of the token that a node emits. Its distance to softmax in fp64 is the error of the rule.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokcore.reference.sampling import Row, make_row
from tokcore.reference.verify_tree import plan, typical_child

# rule, how its children are chosen, whether it is lossless for them
PAIRS = (
    ("coupled", "fixed", True),
    ("coupled", "iid", True),
    ("iid", "iid", True),
    ("without_replacement", "without_replacement", True),
    ("target_only", "fixed", True),
    ("target_only", "without_replacement", True),
    ("iid", "without_replacement", False),
    ("without_replacement", "fixed", False),
    ("typical", "fixed", False),
)


def drafts(children: str, q: Sequence[float], k: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Every list of k children with its probability."""
    V = len(q)
    if children == "fixed":
        yield 1.0, tuple(sorted(range(V), key=lambda v: -q[v])[:k])
    elif children == "iid":
        for chosen in itertools.product(range(V), repeat=k):
            yield _product(q[v] for v in chosen), chosen
    else:
        for chosen in itertools.permutations(range(V), k):
            left, probability = 1.0, 1.0
            for v in chosen:
                probability *= q[v] / left
                left -= q[v]
            yield probability, chosen


def _product(factors: Iterator[float]) -> float:
    result = 1.0
    for factor in factors:
        result *= factor
    return result


@dataclass(frozen=True)
class Outcome:
    """Of one node."""

    law: Tensor  # float64 [V], of the emitted token
    accepted: float  # the probability that it is a child


def enumerate_node(rule: str, row: Row, children: str, q: Sequence[float], k: int) -> Outcome:
    """Sums over all drafts, tests and draws."""
    law, accepted = [0.0] * len(q), 0.0
    for probability, chosen in drafts(children, q, k):
        if probability <= 0.0:
            continue
        for share, token, is_child in _emitted(rule, row, chosen, q):
            law[token] += probability * share
            accepted += probability * share if is_child else 0.0
    return Outcome(torch.tensor(law, dtype=torch.float64), accepted)


def _emitted(rule: str, row: Row, chosen: tuple[int, ...], q: Sequence[float]) -> Iterator[tuple[float, int, bool]]:
    """(probability, token, whether it is a child) of all that can happen with these children."""
    if rule == "typical":
        found = typical_child(row, chosen, 0.3, 0.09)
        if found >= 0:
            yield 1.0, chosen[found], True
            return
    if rule in ("typical", "coupled"):  # the greatest of ln p + noise is a draw from p
        for token, weight in enumerate(row.weights):
            yield weight / row.mass, token, rule == "coupled" and token in chosen
        return
    tests, weights = plan(rule, row, chosen, q)
    left = 1.0
    for test in tests:
        yield left * test.probability(), chosen[test.child], True
        left *= 1.0 - test.probability()
    total = sum(weights)
    for token, weight in enumerate(weights):
        yield left * (weight / total if total else 0.0), token, False


def distance(law: Tensor, target: Tensor) -> float:
    """Total variation."""
    return float((law - target).abs().sum()) / 2.0


def pair_of(V: int, seed: int) -> tuple[Tensor, Tensor]:
    """Logits of a target, float32, and draft probabilities near them whose sum is 1 to fp64."""
    generator = torch.Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(V, generator=generator)
    q = torch.softmax((logits + torch.randn(V, generator=generator)).double(), 0)
    return logits, q


def table(V: int = 7, pairs: int = 5) -> list[tuple[str, str, bool, list[float], list[float]]]:
    """Rule, children, whether it is claimed lossless, worst distance and mean acceptance for k = 1, 2, 3."""
    rows = []
    for rule, children, lossless in PAIRS:
        worst, accepted = [], []
        for k in (1, 2, 3):
            found = []
            for seed in range(pairs):
                logits, q = pair_of(V, seed)
                outcome = enumerate_node(rule, make_row(logits, {}), children, q.tolist(), k)
                found.append((distance(outcome.law, torch.softmax(logits.double(), 0)), outcome.accepted))
            worst.append(max(x for x, _ in found))
            accepted.append(sum(x for _, x in found) / pairs)
        rows.append((rule, children, lossless, worst, accepted))
    return rows


def main() -> None:
    """Prints the table as Markdown."""
    print("| rule | children | lossless | largest TV, k = 1 / 2 / 3 | accepted, k = 1 / 2 / 3 |")
    print("| --- | --- | --- | --- | --- |")
    for rule, children, lossless, worst, accepted in table():
        distances = " / ".join(f"{x:.1e}" for x in worst)
        shares = " / ".join(f"{x:.3f}" for x in accepted)
        print(f"| `{rule}` | {children.replace('_', ' ')} | {'yes' if lossless else 'no'} | {distances} | {shares} |")


if __name__ == "__main__":
    main()
