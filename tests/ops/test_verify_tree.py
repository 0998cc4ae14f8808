"""Verification of trees: losslessness of every rule, and what it refuses."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from sampling_support import exceeds, random
from support import threads
from torch import Tensor

import tokcore
from tokcore.reference.sampling import ACCEPTS, make_row, random_bits, token_noise, unit_interval
from tokcore.reference.verify_tree import plan
from tokcore.testing import lossless
from tokcore.testing.cases._trees import random_parents

NAN, INF = float("nan"), float("inf")


# ---- exact enumeration -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "children", "claimed"), lossless.PAIRS)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_outcome_of_a_node(rule: str, children: str, claimed: bool, k: int) -> None:
    logits, q = lossless.pair_of(7, 3)
    outcome = lossless.enumerate_node(rule, make_row(logits, {}), children, q.tolist(), k)
    target = torch.softmax(logits.double(), 0)
    far = lossless.distance(outcome.law, target)
    if claimed:
        assert far <= 1e-12
    elif k > 1 or rule != "iid":  # a single child drawn without replacement is drawn independently
        assert far > 1e-3


@pytest.mark.parametrize("options", [{"top_k": 3.0}, {"top_p": 0.7}, {"temperature": 0.5}, {"typical_mass": 0.8}])
@pytest.mark.parametrize("rule", ["iid", "without_replacement"])
def test_targets_with_zeros(rule: str, options: dict[str, float]) -> None:
    logits, q = lossless.pair_of(6, 1)
    q = torch.where(torch.arange(6) == 2, 0.0, q)
    row = make_row(logits, options)
    outcome = lossless.enumerate_node(rule, row, rule, (q / q.sum()).tolist(), 2)
    target = torch.tensor(row.weights, dtype=torch.float64) / row.mass
    assert bool((target == 0).any()) == (options != {"temperature": 0.5})
    assert lossless.distance(outcome.law, target) <= 1e-12


def test_paths_of_three_tokens() -> None:
    """The joint law of three tokens whose targets and drafts depend on all before, over every tree of two children."""
    V, k = 4, 2
    target: dict[tuple[int, ...], float] = {(): 1.0}
    emitted: dict[tuple[int, ...], float] = {(): 1.0}
    for depth in range(3):
        after: dict[tuple[int, ...], float] = {}
        emitted_after: dict[tuple[int, ...], float] = {}
        for number, path in enumerate(sorted(target)):
            logits, q = lossless.pair_of(V, 100 * depth + number)
            rule = ("iid", "without_replacement", "target_only")[number % 3]
            children = rule if rule != "target_only" else "fixed"
            law = lossless.enumerate_node(rule, make_row(logits, {}), children, q.tolist(), k).law
            for v, (a, b) in enumerate(zip(torch.softmax(logits.double(), 0).tolist(), law.tolist(), strict=True)):
                after[(*path, v)] = target[path] * a
                emitted_after[(*path, v)] = emitted[path] * b
        target, emitted = after, emitted_after
    assert len(target) == V**3
    assert sum(abs(target[path] - emitted[path]) for path in target) / 2 <= 1e-12


# ---- drawn -----------------------------------------------------------------------------------------------------------

V, ROUNDS = 5, 20000
CONTEXTS = 1 + V + V**2 + V**3  # of up to three tokens; the ones before decide p and q


def context_of(tokens: Tensor) -> Tensor:
    """The number of each row's context: those of length n begin at (V^n - 1) / (V - 1)."""
    number = torch.zeros(tokens.size(0), dtype=torch.int64)
    for column in tokens.unbind(1):
        number = number * V + column
    return number + (V ** tokens.size(1) - 1) // (V - 1)


def children_of(rule: str, q: Tensor, noise: Tensor | None, generator: torch.Generator) -> Tensor:
    if rule == "coupled":
        assert noise is not None
        return (q.log() + noise).topk(2).indices
    if rule == "target_only":
        return q.topk(2).indices
    return torch.multinomial(q, 2, replacement=rule == "iid", generator=generator)


def three_tokens(rule: str, logits: Tensor, q: Tensor, told: Tensor, generator: torch.Generator) -> Tensor:
    """Counts of (t1, t2, t3) over all rounds: each step verifies trees of two children and four grandchildren."""
    kept = torch.full((ROUNDS, 3), -1)
    length = torch.zeros(ROUNDS, dtype=torch.int64)
    seeds = torch.randint(2**62, (ROUNDS,), generator=generator)
    parents = torch.tensor([-1, 0, 0, 1, 1, 2, 2], dtype=torch.int32)
    for done in range(3):  # requests that have `done` tokens
        who = (length == done).nonzero().flatten()
        if len(who) == 0:
            continue
        prefix, B = kept[who, :done], len(who)
        tokens = torch.zeros(B, 7, dtype=torch.int64)
        contexts = torch.zeros(B, 7, dtype=torch.int64)
        contexts[:, 0] = context_of(prefix)
        paths: dict[int, Tensor] = {0: prefix}
        for node in (0, 1, 2):
            own = paths[node]
            noise = None
            if rule == "coupled":
                place = own.size(1)
                noise = torch.stack([token_noise(int(seeds[b]), place, V) for b in who]) * 0.6931471805599453
            if own.size(1) > 3:
                break
            drawn = children_of(rule, q[contexts[:, node]], noise, generator)
            for i, child in enumerate((2 * node + 1, 2 * node + 2)):
                tokens[:, child] = drawn[:, i]
                paths[child] = torch.cat([own, drawn[:, i : i + 1]], 1)
                contexts[:, child] = context_of(paths[child][:, :3])
        tree = tokcore.TokenTree(parents.expand(B, -1).contiguous(), tokens)
        given = told[contexts] if rule in ("iid", "without_replacement") else None
        verdict = tokcore.verify_tree_sample(
            logits[contexts], tree, rule=rule, seed=seeds[who], position=torch.full((B,), done), draft_probs=given
        )
        for step in (1, 2):  # the path below the root, then the token after it
            deep = verdict.accepted_counts > step
            column = done + step - 1
            if column < 3:
                chosen = tokens.gather(1, verdict.accepted_nodes[:, step : step + 1].long().clamp(min=0)).flatten()
                kept[who[deep], column] = chosen[deep]
        last = done + verdict.accepted_counts.long() - 1
        inside = last < 3
        kept[who[inside], last[inside]] = verdict.next_token[inside]
        length[who] = (last + 1).clamp(max=3)
    assert bool((length == 3).all())
    return torch.bincount(context_of(kept) - (V**3 - 1) // (V - 1), minlength=V**3)


def worlds() -> tuple[Tensor, Tensor, Tensor]:
    """Logits and drafts of every context, and the probability of every three tokens."""
    logits = 1.2 * random(CONTEXTS, V, seed=9)
    q = torch.softmax(logits + random(CONTEXTS, V, seed=10), -1)
    p = torch.softmax(logits.double(), -1)
    every = torch.cartesian_prod(*[torch.arange(V)] * 3)
    law = torch.ones(V**3, dtype=torch.float64)
    for n in range(3):
        law *= p[context_of(every[:, :n])].gather(1, every[:, n : n + 1]).flatten()
    return logits, q, law


@pytest.mark.parametrize("rule", ["without_replacement", "iid", "target_only"])
def test_three_drawn_tokens_follow_the_target(rule: str) -> None:
    logits, q, law = worlds()
    assert not exceeds(three_tokens(rule, logits, q, q, torch.Generator().manual_seed(1)), law)


@pytest.mark.parametrize("rule", ["without_replacement", "iid"])
def test_wrong_draft_probabilities_are_found_out(rule: str) -> None:
    logits, q, law = worlds()
    wrong = 0.5 * q + 0.1
    assert exceeds(three_tokens(rule, logits, q, wrong, torch.Generator().manual_seed(1)), law)


def test_three_coupled_tokens_follow_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROUNDS", 2000)
    logits, q, law = worlds()
    assert not exceeds(three_tokens("coupled", logits, q, q, torch.Generator().manual_seed(1)), law)


# ---- the coupled rule ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"top_p": 0.8, "temperature": 1.4}, {"typical_mass": 0.6}, {"top_k": 3}])
@pytest.mark.parametrize("shape", ["random", "chain", "star", "wide"])
def test_coupled_is_sequential_sampling(shape: str, options: dict[str, Any]) -> None:
    B, N, W = 3, 40, 6
    generator = torch.Generator().manual_seed(7)
    parents, counts = random_parents(B, N, shape, generator)
    tokens = torch.randint(W, (B, N), generator=generator)
    table = random(10**3, W, seed=8)  # logits by a hash of the tokens before
    tree = tokcore.TokenTree(parents, tokens, counts)
    logits = torch.zeros(B, N, W)
    for b in range(B):
        for node in range(int(counts[b])):
            logits[b, node] = table[hash_of([int(tokens[b, n]) for n in tree.path(b, node)])]
    seeds, positions = torch.tensor([5, 6, 7]), torch.tensor([100, 0, 33])
    verdict = tokcore.verify_tree_sample(logits, tree, seed=seeds, position=positions, **options)
    for b in range(B):
        nodes = verdict.accepted_nodes[b, : int(verdict.accepted_counts[b])].tolist()
        if not nodes:
            assert int(counts[b]) == 0
            continue
        got = [*[int(tokens[b, n]) for n in nodes[1:]], int(verdict.next_token[b])]
        text = [int(tokens[b, 0])]
        for place, token in enumerate(got):
            row = table[hash_of(text)].unsqueeze(0)
            drawn = tokcore.sample(row, seed=int(seeds[b]), position=int(positions[b]) + place, **options)
            assert int(drawn.token) == token
            text.append(token)
        assert text[-1] not in [int(tokens[b, n]) for n in tree.children(b, nodes[-1])]  # it went as far as it could


def hash_of(tokens: list[int]) -> int:
    number = 17
    for token in tokens:
        number = (number * 31 + token + 1) % 1009
    return number % 1000


def test_greedy_is_the_coupled_rule_at_temperature_0() -> None:
    parents, counts = random_parents(4, 30, "wide", torch.Generator().manual_seed(2))
    logits = random(4, 30, 5).mul(2).round()
    tree = tokcore.TokenTree(parents, torch.randint(5, (4, 30)), counts)
    greedy = tokcore.verify_tree_greedy(logits, tree)
    cold = tokcore.verify_tree_sample(logits, tree, seed=0, position=0, temperature=0.0)
    along = tokcore.verify_tree_greedy(None, tree, target_tokens=logits.argmax(-1))
    for other in (cold, along):
        assert torch.equal(greedy.accepted_nodes, other.accepted_nodes)
        assert torch.equal(greedy.next_token, other.next_token)


# ---- edges -----------------------------------------------------------------------------------------------------------

PARENTS = torch.tensor([[-1, 0, 0, 1, 2], [-1, 0, 0, 1, 2]], dtype=torch.int32)
TOKENS = torch.tensor([[0, 1, 2, 3, 4], [0, 4, 3, 2, 1]])
RULES = ("coupled", "without_replacement", "iid", "target_only", "typical")


def given(**change: Any) -> dict[str, Any]:
    """Arguments of a call: logits [2, 5, 6]."""
    tree = tokcore.TokenTree(PARENTS, change.pop("tokens", TOKENS), change.pop("counts", None))
    rule = change.get("rule", "coupled")
    named: dict[str, Any] = {"logits": random(2, 5, 6), "tree": tree, "seed": 1, "position": 0}
    if rule in ("without_replacement", "iid"):
        named["draft_probs"] = torch.softmax(random(2, 5, 6, seed=1), -1)
    if rule == "typical":
        named["lossless"] = False
    return {**named, **change}


@pytest.mark.parametrize("rule", RULES)
def test_rows_threads_and_company_change_nothing(rule: str) -> None:
    B, N, W = 4, 17, 700
    generator = torch.Generator().manual_seed(3)
    parents, counts = random_parents(B, N, "wide", generator, ragged=False)
    logits = random(B, N, W, seed=4)
    q = torch.softmax(logits + 0.3 * random(B, N, W, seed=5), -1)
    tokens = torch.multinomial(q.reshape(-1, W), 1, generator=generator).reshape(B, N)
    tokens = torch.where(parents >= 0, tokens.gather(1, parents.long().clamp(min=0)), tokens)
    tree = tokcore.TokenTree(parents, tokens, counts)
    seeds = torch.arange(B)
    options: dict[str, Any] = {"rule": rule, "lossless": False, "position": 5}
    if rule in ("without_replacement", "iid"):
        options["draft_probs"] = q
    found = []
    for rows in ("path", "all"):
        for count in (1, 3):
            with threads(count):
                found.append(tokcore.verify_tree_sample(logits, tree, seed=seeds, rows=rows, **options))
    for other in found[1:]:
        assert torch.equal(found[0].accepted_nodes, other.accepted_nodes)
        assert torch.equal(found[0].next_token, other.next_token)
    if "draft_probs" in options:
        options["draft_probs"] = q[2:3]
    one = tokcore.TokenTree(parents[2:3], tokens[2:3], counts[2:3])
    alone = tokcore.verify_tree_sample(logits[2:3], one, seed=2, **options)
    assert torch.equal(alone.accepted_nodes, found[0].accepted_nodes[2:3])
    assert torch.equal(alone.next_token, found[0].next_token[2:3])


@pytest.mark.parametrize("rule", RULES)
def test_requests_without_drafts(rule: str) -> None:
    arguments = given(rule=rule, counts=[1, 0])
    arguments["logits"][:, 1:] = NAN  # padding is never read
    verdict = tokcore.verify_tree_sample(**arguments)
    assert verdict.accepted_counts.tolist() == [1, 0]
    assert verdict.accepted_nodes.tolist() == [[0, -1, -1, -1, -1], [-1] * 5]
    assert 0 <= int(verdict.next_token[0]) < 6
    assert int(verdict.next_token[1]) == -1
    if rule == "coupled":
        assert int(verdict.next_token[0]) == int(tokcore.sample(arguments["logits"][:1, 0], seed=1, position=0).token)


def test_nodes_on_the_path_count_for_penalties() -> None:
    tree = tokcore.TokenTree.chain(torch.tensor([[3, 1, 1, 2]]))
    logits = torch.zeros(1, 4, 4)
    logits[:, :, 1] = 40.0
    counts = torch.zeros(1, 4, dtype=torch.int32)
    verdict = tokcore.verify_tree_sample(
        logits, tree, seed=0, position=0, token_counts=counts, frequency_penalty=30.0
    )  # after two of them token 1 has lost 60
    assert verdict.accepted_nodes[0, :3].tolist() == [0, 1, 2]
    assert int(verdict.accepted_counts[0]) >= 3
    assert int(verdict.next_token[0]) != 1


def test_grammar_is_by_node() -> None:
    bits = torch.full((2, 5, 1), 0b111111, dtype=torch.int32)
    bits[:, 0] = 0b000110
    bits[:, 1] = 0b001000
    verdict = tokcore.verify_tree_sample(**given(allowed_bits=bits, tokens=TOKENS[:1].expand(2, -1).contiguous()))
    for nodes in verdict.accepted_nodes.tolist():
        assert nodes[:3] == [0, 1, 3] or nodes[1] == 2


def test_r_of_0_accepts_what_has_probability() -> None:
    tests, _ = plan("target_only", make_row(torch.tensor([0.0, -INF, 1.0]), {}), [1, 0], None)
    assert [test.accepts(0.0) for test in tests] == [False, True]
    assert not tests[0].probability()
    assert min(unit_interval(random_bits(0, ACCEPTS, n, 0)) for n in range(2000)) < 1e-2
    assert unit_interval(2**11 - 1) == 0.0


def test_typical_takes_the_likeliest_child() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(1, 3, 4)
    tree = tokcore.TokenTree(torch.tensor([[-1, 0, 0]], dtype=torch.int32), torch.tensor([[0, 1, 0]]))
    verdict = tokcore.verify_tree_sample(logits, tree, rule="typical", lossless=False, seed=0, position=0)
    assert verdict.accepted_nodes[0].tolist() == [0, 2, -1]
    strict = {"typical_epsilon": 1.0, "typical_alpha": 1.0}  # e^-entropy is 0.32: token 1 lies below
    only = tokcore.TokenTree(torch.tensor([[-1, 0]], dtype=torch.int32), torch.tensor([[0, 1]]))
    none = tokcore.verify_tree_sample(logits[:, :2], only, rule="typical", lossless=False, seed=0, position=0, **strict)
    assert none.accepted_counts.tolist() == [1]


# ---- what is refused -------------------------------------------------------------------------------------------------


def logits_with(node: int, value: float) -> Tensor:
    z = random(2, 5, 6)
    z[1, node] = value
    return z


def probs_with(value: float) -> Tensor:
    q = torch.softmax(random(2, 5, 6, seed=1), -1)
    q[1, 0, 5] = value
    return q


EQUAL = torch.tensor([[0, 1, 2, 3, 4], [0, 4, 4, 2, 1]])
HALF = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0, 0.0]).expand(2, 5, 6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logits": logits_with(0, NAN)}, "argument 'logits': expected numbers below inf, got NaN or inf at node 0 of"),
        ({"logits": logits_with(0, -INF)}, "expected a logit above -inf, got none at node 0 of request 1"),
        (
            {"allowed_bits": torch.tensor([[[63]] * 5, [[0]] * 5], dtype=torch.int32)},
            "argument 'allowed_bits': expected a token with a logit above -inf, got none at node 0 of request 1",
        ),
        (
            {"rule": "iid", "draft_probs": None},
            "argument 'draft_probs': expected a Tensor for this rule, got None",
        ),
        ({"draft_probs": probs_with(0.1)}, "argument 'draft_probs': expected None for this rule, got a Tensor"),
        (
            {"rule": "iid", "draft_probs": probs_with(0.9)},
            "argument 'draft_probs': expected probabilities that sum to 1, got others at node 0 of request 1",
        ),
        (
            {"rule": "without_replacement", "draft_probs": probs_with(NAN)},
            "argument 'draft_probs': expected probabilities that sum to 1, got others at node 0 of request 1",
        ),
        (
            {"rule": "without_replacement", "tokens": EQUAL},
            "argument 'tokens': expected siblings of different tokens, for the rule is lossless for no others, got the "
            "token of an earlier sibling at node 2 of request 1",
        ),
        (
            {"rule": "without_replacement", "draft_probs": HALF},
            "argument 'draft_probs': expected more than 0 for every child, for the rule is lossless for no others, got",
        ),
        ({"rule": "typical", "lossless": True}, "argument 'lossless': expected False for rule 'typical', got True"),
        (
            {"rule": "iid", "children": "without_replacement"},
            "argument 'children': expected 'iid' for rule 'iid' (or lossless=False), got 'without_replacement'",
        ),
        (
            {"rule": "target_only", "children": "coupled"},
            "argument 'children': expected 'fixed' or 'iid' or 'without_replacement' for rule 'target_only' (or",
        ),
        ({"rule": "topk"}, "argument 'rule': expected 'coupled' or 'without_replacement' or 'iid' or 'target_only' or"),
        ({"rows": "some"}, "argument 'rows': expected 'path' or 'all'"),
        ({"tokens": TOKENS + 2}, "argument 'tokens': expected values in [0, V), got another at node 4 of request 0"),
        ({"logits": random(2, 4, 6)}, "argument 'tokens': expected shape [2, 4] ([B, N] of logits), got [2, 5]"),
        ({"top_p": 1.1}, "argument 'top_p': expected a value in (0, 1], got 1.1"),
        (
            {"top_p": torch.tensor([1.0, 0.0])},
            "argument 'top_p': expected a value in (0, 1], got another in request 1",
        ),
        ({"typical_epsilon": 1.5}, "argument 'typical_epsilon': expected a value in [0, 1], got 1.5"),
    ],
)
def test_bad_values(change: dict[str, Any], words: str) -> None:
    arguments = given(**change)
    expected = words.replace("'path' or 'all'", "'auto' or 'path' or 'all'")
    with pytest.raises(ValueError, match=re.escape(expected)):
        tokcore.verify_tree_sample(**arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"rule": "without_replacement", "tokens": EQUAL},
        {"rule": "without_replacement", "draft_probs": HALF},
        {"rule": "iid", "draft_probs": HALF},
        {"rule": "iid", "children": "coupled"},
    ],
    ids=str,
)
def test_lossless_false_computes_it_all_the_same(change: dict[str, Any]) -> None:
    verdict = tokcore.verify_tree_sample(**given(**change, lossless=False))
    assert bool((verdict.next_token >= 0).all())
    assert bool((verdict.next_token < 6).all())


def test_rows_off_the_path_are_not_read() -> None:
    z = logits_with(4, NAN)
    arguments = given(logits=z, temperature=0.0)
    z[1, 0] = torch.tensor([0.0, 0, 0, 0, 9, 0])  # request 1 goes to node 1, token 4; node 4 is below node 2
    verdict = tokcore.verify_tree_sample(**arguments)
    assert verdict.accepted_nodes[1, :2].tolist() == [0, 1]


def test_a_bad_request_keeps_nothing_and_leaves_the_others_alone() -> None:
    arguments = given(logits=logits_with(0, NAN))
    verdict = tokcore.verify_tree_sample(**arguments, validate=False)
    assert verdict.status is not None
    assert verdict.status.tolist() == [[0, 0], [1, 0]]
    assert verdict.accepted_counts[1] == 0
    assert verdict.next_token[1] == -1
    assert verdict.accepted_nodes[1].tolist() == [-1] * 5
    assert int(verdict.accepted_counts[0]) >= 1


@pytest.mark.parametrize(
    "change",
    [
        {"parents": torch.tensor([[-1, 0, 7, 1, 2]] * 2, dtype=torch.int32)},
        {"counts": torch.tensor([9, -1], dtype=torch.int32)},
        {"first_child": torch.tensor([[0, 0, 0, 0, 0]] * 2, dtype=torch.int32)},
        {"next_sibling": torch.tensor([[-1, 2, 1, 3, 4]] * 2, dtype=torch.int32)},
        {"first_child": torch.tensor([[2**31 - 1] * 5] * 2, dtype=torch.int32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_links_that_are_no_tree_raise_and_do_not_spin(change: dict[str, Tensor]) -> None:
    tree = tokcore.TokenTree(PARENTS, TOKENS)
    first, following = tree.links()
    named = {"tokens": TOKENS, "parents": PARENTS, "counts": tree.counts, "first_child": first}
    named = {**named, "next_sibling": following, **change}
    with pytest.raises(RuntimeError, match="argument 'parents': expected links of trees of 0 to N nodes"):
        torch.ops.tokcore.verify_tree_greedy(None, TOKENS, **named)


def test_memory_is_a_fraction_of_a_megabyte() -> None:
    from tokcore.testing.cases.verify_tree_sample import TABLE
    from tokcore.testing.memory import measure_variant

    (ours,) = [variant for variant in TABLE.variants if not variant.peer]
    memory = measure_variant(TABLE.op, TABLE.case("B=1,N=64,V=131072,bf16"), ours, threads=2)
    assert memory.extra <= 1 << 20
