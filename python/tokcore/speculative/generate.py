"""``generate``: tokens by draft and verification, any drafter, any cache."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
        input_ids: int64 [B, L] where the model lies, or B lists of tokens; each prompt has at least one.
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

    On a GPU a step waits for it once, when the accepted tokens are read; a drafter with a model waits in every
    question it asks, and ``switch`` once more a step for the entropies.
    """
    require = checks.wrapper_require(_OP)
    checks.check_count(require, "max_new_tokens", max_new_tokens, 0, 2**30, "tokens")
    checks._number(require, "temperature", temperature)
    prompts = _as_prompts(require, input_ids, lengths, model.vocab_size)
    most_nodes = 1 if drafter is None else min(drafter.max_nodes, MOST_NODES)
    if isinstance(budget, int):
        checks.check_count(require, "budget", budget, 1, MOST_NODES, "nodes of a tree")
        most_nodes = min(most_nodes, budget)
    device = input_ids.device if isinstance(input_ids, Tensor) else torch.device(getattr(model, "device", "cpu"))
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


class _Clock:
    """Seconds by part: of the host's clock, or between events of a GPU, which are read after it was waited for."""

    def __init__(self, device: torch.device, seconds: dict[str, float]) -> None:
        self._device, self._seconds = device, seconds
        self._events: list[tuple[str, Any, Any]] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What is done inside belongs to the part ``name``."""
        if self._device.type != "cuda":
            start = time.perf_counter()
            yield
            self._seconds[name] += time.perf_counter() - start
            return
        stream = torch.cuda.current_stream(self._device)
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        before.record(stream)
        yield
        after.record(stream)
        self._events.append((name, before, after))

    def read(self) -> None:
        """Adds up what has ended."""
        for name, before, after in self._events:
            self._seconds[name] += before.elapsed_time(after) / 1000.0
        self._events.clear()


@dataclass(frozen=True)
class _Outcome:
    """What the host learns of a step."""

    paths: list[list[int]]  # accepted nodes of every request
    drafted: list[list[int]]  # tokens of every tree
    following: list[int]  # the token after the path, -1: none
    nodes: int  # of all trees


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
        self.clock = _Clock(device, self.statistics.seconds)
        models = [model] if switch is None else [model, switch.small]
        with self.clock.part("prefill"):
            self.sessions = [one.session(batch, self.capacity, cache) for one in models]  # type: ignore[attr-defined]
        self.cached = [[0] * batch for _ in models]  # tokens in each session's cache, known without asking a GPU
        self.active = [0] * batch  # which session makes a request's next step
        self.since = [0] * batch  # steps since it changed
        self.entropies: list[list[float]] = [[] for _ in prompts]

    def run(self) -> GenerationResult:
        if self.drafter is not None:
            with self.clock.part("draft"):
                lengths = self._upload(self.lengths)
                start = DraftStart(self.history, lengths, self.vocab_size, self.capacity, self.most_nodes)
                self.drafter.start(start)
        while not all(self.done):
            for index, session in enumerate(self.sessions):
                members = [not end and turn == index for end, turn in zip(self.done, self.active, strict=True)]
                if any(members):
                    self._catch_up(index, session, members)
                    self._step(index, session, members)
        rows = self.history.tolist()
        self.clock.read()
        tokens = [
            torch.tensor(row[first:length], dtype=torch.int64, device=self.device)
            for row, first, length in zip(rows, self.firsts, self.lengths, strict=True)
        ]
        self.statistics.new_tokens = sum(part.numel() for part in tokens)
        return GenerationResult(tokens, self.statistics)

    def _upload(self, values: Sequence[int] | Sequence[Sequence[int]], dtype: torch.dtype = torch.int32) -> Tensor:
        """To the device; from pinned memory, so that the host does not wait for a GPU."""
        made = torch.tensor(values, dtype=dtype)
        if self.device.type != "cuda":
            return made.to(self.device)
        return made.pin_memory().to(self.device, non_blocking=True)

    def _catch_up(self, index: int, session: Session, members: list[bool]) -> None:
        """Everything before the root into the cache: the prompt, or what the other model made."""
        have = self.cached[index]
        missing = [
            length - 1 - there if member else 0
            for length, there, member in zip(self.lengths, have, members, strict=True)
        ]
        most = max(missing)
        if most == 0:
            return
        with self.clock.part("prefill"):
            begin, counts = self._upload([have, missing])
            steps = torch.arange(most, device=self.device)
            places = (begin.unsqueeze(1) + steps).clamp(max=self.capacity - 1)
            tokens = torch.where(steps < counts.unsqueeze(1), self.history.gather(1, places), 0)
            session.append(tokens, counts)
        self.cached[index] = [there + count for there, count in zip(have, missing, strict=True)]

    def _step(self, index: int, session: Session, members: list[bool]) -> None:
        most = self.budget.choose(self.most_nodes) if isinstance(self.budget, ThroughputBudget) else self.most_nodes
        start = time.perf_counter()
        lengths, budgets = self._upload([self.lengths, [most if member else 0 for member in members]])
        roots = self.history.gather(1, (lengths.to(torch.int64) - 1).unsqueeze(1)).squeeze(1)
        context = DraftContext(self.history, lengths, roots, budgets, self._draws())
        with self.clock.part("draft"):
            draft = self._draft(context)
        with self.clock.part("forward"):
            hidden = session.forward(draft.tree)
        wanted = 0 if self.drafter is None else self.drafter.num_candidates
        with self.clock.part("verify"):
            verdict, candidates = self._verify(session, draft, hidden, wanted, lengths)
        with self.clock.part("compact"):
            session.compact(draft.tree, verdict)
        if self.drafter is not None:
            with self.clock.part("draft"):
                self.drafter.update(context, draft.tree, candidates)
        outcome = self._read(draft.tree, verdict)
        self.cached[index] = [there + len(path) for there, path in zip(self.cached[index], outcome.paths, strict=True)]
        if self.switch is not None:
            self._take_turns(index, session, hidden, outcome, members)
        self._write(draft, verdict, outcome, lengths, members)
        if isinstance(self.budget, ThroughputBudget):
            paths = [path for path, member in zip(outcome.paths, members, strict=True) if member]
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
        parents = torch.full_like(roots, -1, dtype=torch.int32)
        return Draft(TokenTree(parents, roots, context.budgets, validate=False))

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

    def _read(self, tree: TokenTree, verdict: Verdict) -> _Outcome:
        """What the step brought, in one piece: here, and nowhere else in a step, the host waits for a GPU."""
        numbers = (verdict.accepted_counts, verdict.next_token, tree.counts)
        parts = (*(part.unsqueeze(1) for part in numbers), verdict.accepted_nodes, tree.tokens)
        rows = torch.cat([part.to(torch.int64) for part in parts], 1).tolist()
        self.clock.read()
        first = len(numbers) + verdict.accepted_nodes.size(1)
        return _Outcome(
            paths=[row[len(numbers) : len(numbers) + row[0]] for row in rows],
            drafted=[row[first:] for row in rows],
            following=[row[1] for row in rows],
            nodes=sum(row[2] for row in rows),
        )

    def _write(self, draft: Draft, verdict: Verdict, outcome: _Outcome, lengths: Tensor, members: list[bool]) -> None:
        """New tokens into the history."""
        written: list[list[int]] = []
        for b, member in enumerate(members):
            if not member:
                written.append([])
                continue
            checks.wrapper_require(_OP)(
                outcome.following[b] >= 0,
                "model",
                lambda: "logits without NaN",
                lambda b=b: f"NaN for request {b}",  # type: ignore[misc]
            )
            new = [*(outcome.drafted[b][node] for node in outcome.paths[b][1:]), outcome.following[b]]
            self.statistics.accepted[b].append(len(new) - 1)
            new = new[: self.limits[b] - self.lengths[b]]
            stop = next((i for i, token in enumerate(new) if token in self.stop_tokens), None)
            if stop is not None:
                new = new[: stop + 1]
            self.lengths[b] += len(new)
            self.done[b] = stop is not None or self.lengths[b] == self.limits[b]
            written.append(new)
            if self.on_tokens is not None:
                self.on_tokens(b, new)
        # What is behind a request's tokens is room: padding may be written there.
        most = max(map(len, written))
        padded = self._upload([new + [0] * (most - len(new)) for new in written], torch.int64)
        places = lengths.to(torch.int64).unsqueeze(1) + torch.arange(most, device=self.device)
        self.history.scatter_(1, places, padded)
        self.statistics.nodes.append(outcome.nodes)
        if self.on_step is not None:
            self.on_step(Step(draft, verdict, written))

    def _take_turns(self, index: int, session: Session, hidden: Tensor, outcome: _Outcome, members: list[bool]) -> None:
        """Entropies of the distributions on the accepted paths decide who goes on."""
        assert self.switch is not None
        places = [(b, node) for b, member in enumerate(members) if member for node in outcome.paths[b]]
        rows, nodes = self._upload(list(zip(*places, strict=True)), torch.int64)
        logprobs = torch.log_softmax(session.logits(hidden[rows, nodes]).float(), -1)
        found = -(logprobs.exp() * logprobs.clamp(min=-1e4)).sum(-1)
        for (b, _), entropy in zip(places, found.tolist(), strict=True):
            self.entropies[b] = [*self.entropies[b], entropy][-self.switch.window :]
        for b, member in enumerate(members):
            if not member:
                continue
            self.statistics.small_steps += index
            self.since[b] += 1
            wanted = int(sum(self.entropies[b]) / len(self.entropies[b]) <= self.switch.threshold)
            if wanted != index and self.since[b] >= self.switch.least:
                self.active[b], self.since[b] = wanted, 0
