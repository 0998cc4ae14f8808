"""``generate``: tokens by draft and verification, any drafter, any cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tokcore.ops import _checks as checks
from tokcore.ops._draft_checks import MOST_NODES
from tokcore.ops.draft_samples import OPTIONS
from tokcore.ops.verify_tree_greedy import verify_tree_greedy
from tokcore.ops.verify_tree_sample import verify_tree_sample
from tokcore.speculative.drafter import Draft, DraftContext, Drafter, DraftStart, Draws
from tokcore.speculative.model import CacheOptions, Session, SpeculativeModel
from tokcore.speculative.policies import EntropySwitch, ThroughputBudget
from tokcore.speculative.result import GenerationResult, GenerationStatistics, Step
from tokcore.token_tree import TokenTree
from tokcore.verdict import Verdict

OnTokens = Callable[[int, list[int]], None]
_OP = "speculative.generate"


def generate(
    model: SpeculativeModel,
    input_ids: Tensor | Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    drafter: Drafter | None = None,
    lengths: Tensor | Sequence[int] | None = None,
    cache: CacheOptions = None,
    budget: int | ThroughputBudget | None = None,
    temperature: float = 0.0,
    rule: str = "coupled",
    seed: int | Tensor = 0,
    stop_tokens: Sequence[int] = (),
    switch: EntropySwitch | None = None,
    on_tokens: OnTokens | None = None,
    on_step: Callable[[Step], None] | None = None,
    **sampling: Any,
) -> GenerationResult:
    """Continues prompts; each forward pass of the model verifies a tree of drafted tokens for every request.

    A request's root is its last token. The drafter hangs a tree under it, the model computes all nodes in one pass, the
    verification keeps a path and draws the token after it, the cache forgets the other nodes. Requests accept different
    numbers of tokens and end at different times.

    With ``temperature=0`` the result is what plain decoding gives, token for token, if the model's hidden states do not
    depend on which tokens are computed side by side. Otherwise tokens are drawn by ``rule``, which is lossless: the
    tokens are distributed as in ordinary sampling, and with "coupled" they are the very tokens that ordinary sampling
    draws with the same seeds.

    Args:
        model: what continues; :class:`SpeculativeModel`.
        input_ids: int64 [B, L], or B lists of tokens; each prompt has at least one.
        max_new_tokens: most new tokens of a request.
        drafter: None is plain decoding.
        lengths: tokens of every prompt where ``input_ids`` is a tensor padded on the right; None: L.
        cache: of the model's session.
        budget: most nodes of a tree, a :class:`ThroughputBudget`, or None: the drafter's ``max_nodes``.
        temperature: 0 takes the likeliest token.
        rule: of :func:`tokcore.verify_tree_sample`.
        seed: of the draws, an int or int64 [B]; requests of one seed share their noise.
        stop_tokens: a request ends with the first of them, which is returned.
        switch: two models that take turns by entropy; not lossless.
        on_tokens: called with a request's number and its new tokens after every step (streaming).
        on_step: called with every :class:`Step`.
        sampling: further arguments of :func:`tokcore.verify_tree_sample`: ``top_k``, ``top_p``, ``min_p``, …

    Returns:
        :class:`GenerationResult`.

    Raises:
        TypeError, ValueError: a wrong type or value, an empty prompt, a token outside the vocabulary; what the
        verification refuses, NaN logits for instance.
    """
    require = checks.wrapper_require(_OP)
    checks.check_count(require, "max_new_tokens", max_new_tokens, 0, 2**30, "tokens")
    checks._number(require, "temperature", temperature)
    prompts = _as_prompts(require, input_ids, lengths, model.vocab_size)
    most_nodes = 1 if drafter is None else min(drafter.max_nodes, MOST_NODES)
    if isinstance(budget, int):
        checks.check_count(require, "budget", budget, 1, MOST_NODES, "nodes of a tree")
        most_nodes = min(most_nodes, budget)
    device = input_ids.device if isinstance(input_ids, Tensor) else torch.device("cpu")
    run = _Generation(model, prompts, max_new_tokens, most_nodes, cache, switch, device)
    run.drafter, run.budget, run.temperature, run.rule, run.sampling = drafter, budget, temperature, rule, sampling
    run.seeds = seed if isinstance(seed, Tensor) else torch.full((len(prompts),), seed, device=device)
    run.stop_tokens, run.on_tokens, run.on_step = frozenset(stop_tokens), on_tokens, on_step
    return run.run()


def _as_prompts(
    require: checks.Require, input_ids: Tensor | Sequence[Sequence[int]], lengths: Any, vocab_size: int
) -> list[list[int]]:
    if isinstance(input_ids, Tensor):
        checks._dtype(require, "input_ids", input_ids, (torch.int64,))
        checks._rank(require, "input_ids", input_ids, 2)
        rows = input_ids.tolist()
        if lengths is not None:
            given = [int(n) for n in lengths]
            fits = len(given) == len(rows) and all(0 <= n <= input_ids.size(1) for n in given)
            require(fits, "lengths", lambda: f"{len(rows)} values in [0, {input_ids.size(1)}]", lambda: f"{given}")
            rows = [row[:n] for row, n in zip(rows, given, strict=True)]
    else:
        rows = [list(row) for row in input_ids]
    for b, row in enumerate(rows):
        require(len(row) > 0, "input_ids", lambda: "at least one token a request", lambda b=b: f"none in request {b}")  # type: ignore[misc]
        wrong = [token for token in row if not 0 <= token < vocab_size]
        require(
            not wrong,
            "input_ids",
            lambda: f"values in [0, {vocab_size})",
            lambda b=b, wrong=wrong: f"{wrong[0]} in request {b}",  # type: ignore[misc]
        )
    return rows


class _Turn:
    """A model of the generation and its session."""

    def __init__(self, model: SpeculativeModel, batch: int, capacity: int, cache: CacheOptions) -> None:
        self.session: Session = model.session(batch, capacity, cache)


class _Generation:
    """One call of :func:`generate`."""

    drafter: Drafter | None
    budget: int | ThroughputBudget | None
    temperature: float
    rule: str
    sampling: dict[str, Any]
    seeds: Tensor
    stop_tokens: frozenset[int]
    on_tokens: OnTokens | None
    on_step: Callable[[Step], None] | None

    def __init__(
        self,
        model: SpeculativeModel,
        prompts: list[list[int]],
        max_new_tokens: int,
        most_nodes: int,
        cache: CacheOptions,
        switch: EntropySwitch | None,
        device: torch.device,
    ) -> None:
        self.vocab_size, self.most_nodes, self.switch, self.device = model.vocab_size, most_nodes, switch, device
        batch = len(prompts)
        self.lengths = [len(prompt) for prompt in prompts]
        self.limits = [length + max_new_tokens for length in self.lengths]
        self.firsts = list(self.lengths)
        self.capacity = max(self.limits, default=0) + most_nodes
        history = torch.zeros(batch, self.capacity, dtype=torch.int64)
        for b, prompt in enumerate(prompts):
            history[b, : len(prompt)] = torch.tensor(prompt)
        self.history = history.to(device)
        self.done = [max_new_tokens == 0] * batch
        self.statistics = GenerationStatistics(accepted=[[] for _ in prompts])
        models = [model] if switch is None else [model, switch.small]
        with self._timed("prefill"):
            self.sessions = [one.session(batch, self.capacity, cache) for one in models]  # type: ignore[attr-defined]
        self.active = [0] * batch  # which session makes a request's next step
        self.since = [0] * batch  # steps since it changed
        self.entropies: list[list[float]] = [[] for _ in prompts]

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.statistics.seconds[part] += time.perf_counter() - start

    def run(self) -> GenerationResult:
        if self.drafter is not None:
            with self._timed("draft"):
                self.drafter.start(
                    DraftStart(
                        self.history, self._tensor(self.lengths), self.vocab_size, self.capacity, self.most_nodes
                    )
                )
        while not all(self.done):
            for index, session in enumerate(self.sessions):
                members = [not end and turn == index for end, turn in zip(self.done, self.active, strict=True)]
                if any(members):
                    self._catch_up(session, members)
                    self._step(index, session, members)
        rows = self.history.tolist()
        tokens = [
            torch.tensor(row[first:length], dtype=torch.int64, device=self.device)
            for row, first, length in zip(rows, self.firsts, self.lengths, strict=True)
        ]
        self.statistics.new_tokens = sum(part.numel() for part in tokens)
        return GenerationResult(tokens, self.statistics)

    def _tensor(self, values: Sequence[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=self.device)

    def _catch_up(self, session: Session, members: list[bool]) -> None:
        """Everything before the root into the cache: the prompt, or what the other model made."""
        have = session.lengths.tolist()
        missing = [
            length - 1 - there if member else 0
            for length, there, member in zip(self.lengths, have, members, strict=True)
        ]
        most = max(missing)
        if most == 0:
            return
        with self._timed("prefill"):
            tokens = torch.zeros(len(missing), most, dtype=torch.int64, device=self.device)
            for b, count in enumerate(missing):
                tokens[b, :count] = self.history[b, have[b] : have[b] + count]
            session.append(tokens, self._tensor(missing))

    def _step(self, index: int, session: Session, members: list[bool]) -> None:
        most = self.budget.choose(self.most_nodes) if isinstance(self.budget, ThroughputBudget) else self.most_nodes
        start = time.perf_counter()
        lengths = self._tensor(self.lengths)
        roots = self.history.gather(1, (lengths.to(torch.int64) - 1).unsqueeze(1)).squeeze(1)
        budgets = self._tensor([most if member else 0 for member in members])
        context = DraftContext(self.history, lengths, roots, budgets, self._draws())
        with self._timed("draft"):
            draft = self._draft(context)
        with self._timed("forward"):
            hidden = session.forward(draft.tree)
        wanted = 0 if self.drafter is None else self.drafter.num_candidates
        with self._timed("verify"):
            verdict, candidates = self._verify(session, draft, hidden, wanted, lengths)
        with self._timed("compact"):
            session.compact(draft.tree, verdict)
        if self.drafter is not None:
            with self._timed("draft"):
                self.drafter.update(context, draft.tree, candidates)
        if self.switch is not None:
            self._take_turns(index, session, hidden, verdict, members)
        paths = self._write(draft, verdict, members)
        if isinstance(self.budget, ThroughputBudget):
            self.budget.observe(most, paths, time.perf_counter() - start)

    def _draws(self) -> Draws | None:
        if self.temperature == 0.0:
            return None
        options = {name: value for name, value in self.sampling.items() if name in OPTIONS}
        return Draws(self.rule, self.seeds, {"temperature": self.temperature, **options})

    def _draft(self, context: DraftContext) -> Draft:
        if self.drafter is not None:
            return self.drafter.draft(context)
        roots = context.roots.unsqueeze(1)
        return Draft(TokenTree(torch.full_like(roots, -1, dtype=torch.int32), roots, context.budgets))

    def _verify(
        self, session: Session, draft: Draft, hidden: Tensor, wanted: int, lengths: Tensor
    ) -> tuple[Verdict, Any]:
        if self.temperature == 0.0 and not self.sampling:
            candidates = session.top(hidden, max(1, wanted))
            targets = candidates.tokens[..., 0].to(torch.int64)
            return verify_tree_greedy(None, draft.tree, target_tokens=targets), candidates
        logits = session.logits(hidden)
        # Roots alone are drawn from: where nothing was drafted there is nothing to test against.
        nothing_drafted = draft.tree.tokens.size(1) == 1 and self.rule in ("without_replacement", "iid")
        verdict = verify_tree_sample(
            logits,
            draft.tree,
            rule="target_only" if nothing_drafted else self.rule,
            seed=self.seeds,
            position=lengths.to(torch.int64),
            draft_probs=draft.draft_probs,
            children=draft.children,
            temperature=self.temperature,
            **self.sampling,
        )
        return verdict, session.top(hidden, wanted) if wanted else None

    def _write(self, draft: Draft, verdict: Verdict, members: list[bool]) -> list[list[int]]:
        """New tokens into the history; returns the accepted nodes of every request that had a tree."""
        nodes, counts = verdict.accepted_nodes.tolist(), verdict.accepted_counts.tolist()
        tokens, following = draft.tree.tokens.tolist(), verdict.next_token.tolist()
        written: list[list[int]] = []
        paths = []
        for b, member in enumerate(members):
            if not member:
                written.append([])
                continue
            checks.wrapper_require(_OP)(
                following[b] >= 0,
                "model",
                lambda: "logits without NaN",
                lambda b=b: f"NaN for request {b}",  # type: ignore[misc]
            )
            path = nodes[b][: counts[b]]
            paths.append(path)
            new = [*(tokens[b][node] for node in path[1:]), following[b]]
            self.statistics.accepted[b].append(len(new) - 1)
            new = new[: self.limits[b] - self.lengths[b]]
            stop = next((i for i, token in enumerate(new) if token in self.stop_tokens), None)
            if stop is not None:
                new = new[: stop + 1]
            self.history[b, self.lengths[b] : self.lengths[b] + len(new)] = torch.tensor(new, device=self.device)
            self.lengths[b] += len(new)
            self.done[b] = stop is not None or self.lengths[b] == self.limits[b]
            written.append(new)
            if self.on_tokens is not None:
                self.on_tokens(b, new)
        self.statistics.nodes.append(int(draft.tree.counts.sum()))
        if self.on_step is not None:
            self.on_step(Step(draft, verdict, written))
        return paths

    def _take_turns(self, index: int, session: Session, hidden: Tensor, verdict: Verdict, members: list[bool]) -> None:
        """Entropies of the distributions on the accepted path decide who goes on."""
        assert self.switch is not None
        nodes, counts = verdict.accepted_nodes.tolist(), verdict.accepted_counts.tolist()
        for b, member in enumerate(members):
            if not member:
                continue
            self.statistics.small_steps += index
            path = torch.tensor(nodes[b][: counts[b]], device=self.device)
            logprobs = torch.log_softmax(session.logits(hidden[b, path]).float(), -1)
            entropy = -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)
            self.entropies[b] = [*self.entropies[b], *entropy.tolist()][-self.switch.window :]
            self.since[b] += 1
            wanted = int(sum(self.entropies[b]) / len(self.entropies[b]) <= self.switch.threshold)
            if wanted != index and self.since[b] >= self.switch.least:
                self.active[b], self.since[b] = wanted, 0
