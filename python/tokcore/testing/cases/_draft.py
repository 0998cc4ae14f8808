"""What the case tables of the draft builders share: random tables, histories and answers of a draft model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, Variant


def generator_of(seed: int) -> torch.Generator:
    """The table's random numbers."""
    return torch.Generator().manual_seed(seed)


def case_of(name: str, tags: str = "verify quick", **parameters: Any) -> Case:
    """A case from its parameters."""
    return Case(name, parameters, frozenset(tags.split()))


def named(values: tuple[Tensor, ...], names: tuple[str, ...]) -> Outputs:
    """Outputs by name; trees are integers and have to be equal, not close."""
    return dict(zip(names, values, strict=True))


TREES = ("parents", "tokens", "counts")


def budgets_of(B: int, N: int, generator: torch.Generator) -> Tensor:
    """A full tree, then any number of nodes, none among them."""
    budgets = torch.randint(0, N + 1, (B,), generator=generator, dtype=torch.int32)
    budgets[0] = N
    return budgets


def random_table(V: int, K: int, generator: torch.Generator, known: float = 0.8) -> Tensor:
    """int32 [V, K] successors, some of them unknown."""
    table = torch.rand(V, V, generator=generator).argsort(dim=1)[:, :K] if V <= 512 else None
    if table is None:
        table = torch.randint(V, (V, K), generator=generator)
    unknown = torch.rand(V, K, generator=generator) > known
    return torch.where(unknown, -1, table).to(torch.int32)


def random_probs(*shape: int, generator: torch.Generator) -> Tensor:
    """float32, descending along the last dimension, a sum below 1."""
    logits = 2.0 * torch.randn(*shape[:-1], shape[-1] + 3, generator=generator)
    return torch.softmax(logits, -1).sort(dim=-1, descending=True).values[..., : shape[-1]].contiguous()


def table_of(
    op: str,
    cases: tuple[Case, ...],
    make_inputs: Callable[[Case, str, int], Inputs],
    run: Callable[[Inputs], Outputs],
    reference: Callable[[Inputs], Outputs],
    bench: str,
    options: tuple[str, ...],
    timed: Callable[[bool, Inputs], Callable[[], Any]] | None = None,
) -> OpTable:
    """A table whose outputs are discrete: what PyTorch would give is the reference itself, which sets no slack.

    ``timed(peer, inputs)`` gives what a benchmark times where that is not the whole of ``run``.
    """

    def prepare(peer: bool) -> Callable[[Case, Inputs], Callable[[], Any]]:
        if timed is not None:
            return lambda _, inputs: timed(peer, inputs)
        return lambda _, inputs: lambda: (reference if peer else run)(inputs)

    return OpTable(
        op=op,
        cases=cases,
        make_inputs=make_inputs,
        run=run,
        reference=reference,
        composition=reference,
        variants=(
            Variant("plain Python", "draft", prepare(True), peer=True, slow=True, backends=("cpu",)),
            Variant("tokcore", "draft", prepare(False), peer=False),
        ),
        goals=(Goal(bench, "draft", "tokcore", "plain Python", 10.0),),
        support={option: {"cpu": "yes", "cuda": "yes"} for option in options},
    )
