"""What the builders promise beyond their case tables: bounds, order, threads, and the meaning of a tree's shape."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

import tokcore
from tokcore.ops.draft_candidates import draft_candidates
from tokcore.ops.draft_heap import draft_heap
from tokcore.ops.draft_ngram import draft_ngram
from tokcore.ops.draft_recycling import draft_recycling, draft_recycling_update
from tokcore.ops.draft_trigram import draft_trigram, draft_trigram_update
from tokcore.testing import tables

DRAFTS = [op for op in tables() if op.startswith("draft_")]


@pytest.mark.parametrize("op", DRAFTS)
def test_any_thread_count_gives_the_same_bits(op: str) -> None:
    table = tables()[op]
    before = torch.get_num_threads()
    for case in table.cases:
        if "verify" not in case.tags:
            continue
        inputs = table.make_inputs(case, "cpu", 11)
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(table.run(inputs))
        torch.set_num_threads(before)
        for other, (name, value) in itertools.product(found[1:], found[0].items()):
            assert torch.equal(other[name].view(torch.uint8), value.view(torch.uint8)), (case.name, name)


@pytest.mark.parametrize("op", [op for op in DRAFTS if op not in ("draft_candidates", "draft_samples")])
def test_random_trees_equal_the_reference_and_are_trees(op: str) -> None:
    table = tables()[op]
    for seed, case in itertools.product(range(6), table.cases):
        if "verify" not in case.tags:
            continue
        inputs = table.make_inputs(case, "cpu", 1000 + seed)
        got, expected = table.run(inputs), table.reference(inputs)
        for name, value in expected.items():
            assert torch.equal(got[name], value), (case.name, seed, name)
        tokcore.TokenTree(got["parents"], got["tokens"], got["counts"])  # checks parents and counts
        assert bool((got["counts"] <= inputs["budgets"]).all())


def test_recycling_takes_a_prefix_of_the_template_and_leaves_unknown_branches_out() -> None:
    adjacency = torch.full((6, 2), -1, dtype=torch.int32)
    adjacency[0] = torch.tensor([1, 2])
    adjacency[2] = torch.tensor([3, 99])  # 99: no token
    parents = torch.tensor([-1, 0, 0, 1, 2, 2, 4], dtype=torch.int32)
    ranks = torch.tensor([0, 0, 1, 0, 0, 1, 0], dtype=torch.int32)
    budgets = torch.tensor([7, 2, 0], dtype=torch.int32)
    found = draft_recycling(adjacency, torch.tensor([0, 0, 0]), budgets, parents, ranks)
    assert found[2].tolist() == [4, 2, 0]
    assert found[0].tolist() == [[-1, 0, 0, 2, -1, -1, -1], [-1, 0, *[-1] * 5], [-1] * 7]
    assert found[1].tolist() == [[0, 1, 2, 3, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0], [0] * 7]


def test_of_equal_tokens_the_last_row_stays() -> None:
    adjacency = torch.zeros(4, 3, dtype=torch.int32)
    rows = torch.arange(15, dtype=torch.int32).reshape(5, 3)
    draft_recycling_update(adjacency, torch.tensor([2, 1, 2, -1, 1]), rows)
    assert adjacency.tolist() == [[0, 0, 0], [12, 13, 14], [6, 7, 8], [0, 0, 0]]


def test_ngrams_prefer_long_and_recent_matches() -> None:
    text = torch.tensor([[7, 1, 2, 9, 5, 1, 2, 8, 5, 2, 6, 1, 2]])
    whole = torch.tensor([13], dtype=torch.int32)
    parents, tokens, counts = draft_ngram(text, whole, whole[:0].new_tensor([6]), max_nodes=6, max_depth=2)
    assert counts.tolist() == [6]
    assert tokens.tolist() == [[2, 8, 5, 9, 5, 6]]  # "1 2" twice, the recent one first; then "2" alone
    assert parents.tolist() == [[-1, 0, 1, 0, 3, 0]]


def best_by_value(candidates: Tensor, probs: Tensor, depth: int) -> list[tuple[float, tuple[int, ...]]]:
    """Every path of ranks down to a depth with the value that DySpec gives it, best first."""
    found: list[tuple[float, tuple[int, ...]]] = []

    def walk(path: tuple[int, ...], joint: float) -> None:
        remaining = 1.0
        for rank, prob in enumerate(probs[len(path)].double().tolist()):
            found.append((joint * remaining, (*path, rank)))
            if len(path) + 1 < depth:
                walk((*path, rank), joint * prob)
            remaining -= prob

    walk((), 1.0)
    return sorted(found, reverse=True)


def test_the_heap_takes_the_best_nodes_of_the_whole_tree() -> None:
    # The model is asked at every node down to depth 2 and says the same at all nodes of a layer.
    K, depth, budget = 3, 3, 14
    generator = torch.Generator().manual_seed(5)
    layers = torch.softmax(torch.randn(depth, K + 1, generator=generator), -1)[:, :K].sort(descending=True).values
    asked = [(-1, 0, 0)]  # parent, rank, depth
    for node in range(1 + K):
        asked += [(node, rank, asked[node][2] + 1) for rank in range(K)]
    probs = torch.stack([layers[d] for _, _, d in asked])
    M = len(asked)
    trees = draft_heap(
        torch.arange(K, dtype=torch.int32).expand(1, M, K),
        probs.unsqueeze(0),
        torch.tensor([[p for p, _, _ in asked]], dtype=torch.int32),
        torch.tensor([[r for _, r, _ in asked]], dtype=torch.int32),
        torch.tensor([M], dtype=torch.int32),
        torch.tensor([0]),
        torch.tensor([budget], dtype=torch.int32),
        max_nodes=budget,
    )
    tree = tokcore.TokenTree(*trees[:3])
    paths = {tuple(int(trees.tokens[0, n]) for n in tree.path(0, node)[1:]) for node in range(1, budget)}
    assert paths == {path for _, path in best_by_value(torch.zeros(0), layers, depth)[: budget - 1]}


def test_asking_layer_by_layer_gives_the_tree_of_asking_everywhere() -> None:
    # A draft model whose answer depends on the path; the tree is grown in rounds as a drafter grows it.
    K, budget, vocabulary = 3, 12, 50

    def answer(path: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(hash(path) % 2**31)
        found = draft_candidates(2.0 * torch.randn(1, vocabulary, generator=generator), K)
        assert found.probs is not None
        return found.tokens[0], found.probs[0]

    def build(asked: list[tuple[int, int, tuple[int, ...]]]) -> tuple[tokcore.TokenTree, Tensor]:
        answers = [answer(path) for _, _, path in asked]
        trees = draft_heap(
            torch.stack([a[0] for a in answers]).unsqueeze(0),
            torch.stack([a[1] for a in answers]).unsqueeze(0),
            torch.tensor([[p for p, _, _ in asked]], dtype=torch.int32),
            torch.tensor([[r for _, r, _ in asked]], dtype=torch.int32),
            torch.tensor([len(asked)], dtype=torch.int32),
            torch.tensor([1]),
            torch.tensor([budget], dtype=torch.int32),
            max_nodes=budget,
        )
        return tokcore.TokenTree(*trees[:3]), trees.sources

    asked: list[tuple[int, int, tuple[int, ...]]] = [(-1, 0, (1,))]
    for _ in range(budget):
        tree, sources = build(asked)
        fresh = [node for node in range(int(tree.counts)) if sources[0, node] < 0]
        if not fresh:
            break
        for node in fresh:
            path = tuple(int(tree.tokens[0, n]) for n in tree.path(0, node))
            parent = int(sources[0, tree.parents[0, node]])
            rank = answer(path[:-1])[0].tolist().index(path[-1])
            asked.append((parent, rank, path))
    rounds = tree
    everywhere = [(-1, 0, (1,))]
    for index, (_, _, path) in enumerate(everywhere):
        if len(path) <= 4:
            everywhere += [(index, rank, (*path, int(token))) for rank, token in enumerate(answer(path)[0])]
    whole, _ = build(everywhere)
    assert whole.tokens.tolist() == rounds.tokens.tolist()
    assert whole.parents.tolist() == rounds.parents.tolist()


def test_puct_without_exploration_follows_the_gain_and_with_it_the_prior() -> None:
    keys, successors = torch.full((64,), -1), torch.full((64, 2), -1, dtype=torch.int32)
    probs = torch.zeros(64, 2)
    rows = {(0, 1): ([2, 3], [0.6, 0.3]), (1, 2): ([4, 5], [0.1, 0.05]), (1, 3): ([6, 7], [0.9, 0.05])}
    draft_trigram_update(
        keys,
        successors,
        probs,
        torch.tensor(list(rows)),
        torch.tensor([row[0] for row in rows.values()], dtype=torch.int32),
        torch.tensor([row[1] for row in rows.values()]),
    )
    one = torch.tensor([0]), torch.tensor([1]), torch.tensor([7], dtype=torch.int32)
    options = {"vocab_size": 8, "max_nodes": 7, "simulations": 2000}
    greedy = draft_trigram(keys, successors, probs, *one, **options, exploration=0.0)
    assert greedy.tokens[0, : int(greedy.counts)].tolist() == [1, 2, 4]  # never leaves the first path it tried
    curious = draft_trigram(keys, successors, probs, *one, **options, exploration=2.0)
    assert sorted(curious.tokens[0].tolist()) == [1, 2, 3, 4, 5, 6, 7]
    tree = tokcore.TokenTree(*curious[:3])
    product = {2: 0.6, 3: 0.3, 4: 0.06, 5: 0.03, 6: 0.27, 7: 0.015, 1: 1.0}
    expected = torch.tensor([product[token] for token in tree.tokens[0].tolist()])
    torch.testing.assert_close(curious.joint[0], expected)


def test_a_pair_takes_over_the_slot_of_another() -> None:
    keys, successors, probs = torch.full((1,), -1), torch.full((1, 1), -1, dtype=torch.int32), torch.zeros(1, 1)
    for a in (3, 4):
        context = torch.tensor([[a, 1]])
        draft_trigram_update(keys, successors, probs, context, torch.tensor([[a]], dtype=torch.int32), probs + 0.5)
    requests = torch.tensor([3, 4]), torch.tensor([1, 1]), torch.tensor([2, 2], dtype=torch.int32)
    found = draft_trigram(keys, successors, probs, *requests, vocab_size=9, max_nodes=2, simulations=3)
    assert found.counts.tolist() == [1, 2]


def test_candidates_of_other_shapes_and_without_probabilities() -> None:
    logits = torch.randn(2, 3, 40)
    found = draft_candidates(logits.mT.contiguous().mT, 5)
    assert found.tokens.shape == (2, 3, 5)
    assert torch.equal(found.tokens.long(), logits.topk(5).indices)
    assert draft_candidates(logits, 5, probs=False).probs is None
    assert torch.equal(draft_candidates(logits[0, 0], 5, probs=False).tokens, found.tokens[0, 0])
