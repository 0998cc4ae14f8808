"""Templates and policies."""

from __future__ import annotations

import itertools

import pytest
import torch

import tokcore
from tokcore.speculative import LengthPolicy, ThroughputBudget, greedy_template


def value_of(template: tokcore.speculative.Template, chances: tuple[float, ...]) -> float:
    values = [1.0]
    for parent, rank in list(zip(template.parents.tolist(), template.ranks.tolist(), strict=True))[1:]:
        values.append(values[parent] * chances[rank])
    return sum(values)


def test_the_template_of_the_paper_has_81_nodes_in_6_layers() -> None:
    template = greedy_template()
    assert (template.num_nodes, int(template.depths.max()), template.num_ranks) == (81, 6, 8)
    tree = tokcore.TokenTree(template.parents.unsqueeze(0), torch.zeros(1, 81, dtype=torch.int64))
    assert torch.equal(tree.depths()[0], template.depths)
    places = list(zip(template.parents.tolist(), template.ranks.tolist(), strict=True))
    assert len(set(places)) == 81
    for parent, rank in places[1:]:
        assert rank == 0 or (parent, rank - 1) in places  # no candidate without those before it


def test_a_smaller_template_is_the_beginning_of_a_larger_one() -> None:
    large = greedy_template(81)
    for size in (1, 2, 9, 40):
        small = greedy_template(size)
        assert torch.equal(small.parents, large.parents[:size])
        assert torch.equal(small.ranks, large.ranks[:size])


@pytest.mark.parametrize("chances", [(0.6, 0.2, 0.1), (0.5, 0.45), (0.9, 0.05, 0.04)])
@pytest.mark.parametrize("nodes", [3, 5])
def test_no_other_template_is_better(chances: tuple[float, ...], nodes: int) -> None:
    best = value_of(greedy_template(nodes, 3, chances), chances)
    everywhere = [path for depth in range(1, 4) for path in itertools.product(range(len(chances)), repeat=depth)]
    for chosen in itertools.combinations(everywhere, nodes - 1):
        if all(path[:-1] in chosen or len(path) == 1 for path in chosen):
            products = [torch.tensor([chances[rank] for rank in path]).prod().item() for path in chosen]
            assert 1.0 + sum(products) <= best + 1e-6


def test_what_a_template_refuses() -> None:
    with pytest.raises(ValueError, match=r"'num_nodes': expected at most 3 \(nodes of these layers\), got 4"):
        greedy_template(4, 1, (0.5, 0.2))
    with pytest.raises(ValueError, match="'rank_acceptance': expected falling values"):
        greedy_template(4, 2, (0.2, 0.5))
    with pytest.raises(ValueError, match="'num_nodes'"):
        greedy_template(257)


def test_length_policy() -> None:
    policy = LengthPolicy(threshold=0.3, least=2, most=5)
    assert policy.grows(1, 0.01)
    assert policy.grows(2, 0.7)
    assert not policy.grows(2, 0.69)
    assert not policy.grows(5, 1.0)
    with pytest.raises(ValueError, match="'least'"):
        LengthPolicy(least=6, most=5)


def run(budget: ThroughputBudget, steps: int, cost: float) -> list[int]:
    """A machine where n nodes cost 1 + cost·n, and a model that keeps nodes 2, 5 and 9."""
    chosen = []
    for _ in range(steps):
        size = budget.choose(16)
        budget.observe(size, [[0, *(node for node in (2, 5, 9) if node < size)]], 1.0 + cost * size)
        chosen.append(size)
    return chosen


def test_the_budget_follows_cost_and_acceptance() -> None:
    sizes = (1, 3, 6, 10, 16)
    assert run(ThroughputBudget(sizes, refresh=1000), 60, 0.001)[-1] == 10  # all three kept, none of the rest
    assert run(ThroughputBudget(sizes, refresh=1000), 60, 0.3)[-1] == 6
    assert run(ThroughputBudget(sizes, refresh=1000), 60, 30.0)[-1] == 1  # a tree may not lose to plain decoding
    trials = run(ThroughputBudget(sizes, refresh=20), 200, 30.0)
    assert trials.count(16) >= 9  # it looks again now and then
    assert trials.count(1) > 150


def test_the_budget_forgets_old_costs() -> None:
    budget = ThroughputBudget((1, 3, 6, 10, 16), refresh=10)
    assert run(budget, 60, 0.001)[-1] == 10
    assert run(budget, 400, 30.0)[-2] == 1


def test_a_budget_refuses_sizes_without_plain_decoding() -> None:
    with pytest.raises(ValueError, match="'sizes': expected ascending sizes from 1 on"):
        ThroughputBudget((2, 4))
