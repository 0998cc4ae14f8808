"""The case table of an op: one description that tests, ``tokcore bench``, ``tokcore verify`` and docs/support.md read.

A table says which shapes, dtypes and options an op is tried with, how its inputs are made, what it should compute (the
fp64 reference), what a user would write without tokcore (the same-dtype PyTorch composition, which sets the tolerance),
which peers to time beside it, how many FLOPs and bytes a call needs, and which ratios are goals.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

Inputs = dict[str, Any]  # tensors and options by argument name
Outputs = dict[str, Tensor]  # results and gradients ("grad_e", …) by name


@dataclass(frozen=True)
class Case:
    """One point of the table. ``parameters`` holds dimension letters, dtype and options that differ from default."""

    name: str  # unique in its table, readable, and accepted by --case: "T=1024,C=1024,V=32768,bf16"
    parameters: Mapping[str, Any]
    # "verify": part of tests and verify; "quick": in CI; "bench", "bench-cuda": timed by default on a CPU, on a GPU;
    # "large": timed when asked for
    tags: frozenset[str] = frozenset()

    @property
    def timed(self) -> bool:
        """Whether it is meant for timing, by default or when asked for."""
        return "verify" not in self.tags or not self.tags.isdisjoint({"bench", "bench-cuda", "large"})


@dataclass(frozen=True)
class Variant:
    """One way to compute the op in a benchmark: tokcore's own (``peer=False``) or somebody else's."""

    name: str  # "tokcore exact", "F.linear+F.cross_entropy", …
    measure: str  # which work it does, "forward" or "forward+backward"; rows of one measure are compared
    prepare: Callable[[Case, Inputs], Callable[[], Any]]  # returns the closure to time
    peer: bool = True
    unavailable: Callable[[Case], str | None] = lambda _: None  # a reason why it cannot run here, or None
    applies: Callable[[Case], bool] = lambda _: True  # cases that it is meant for; it is left out of the others
    slow: bool = False  # timed with few repetitions
    flops: Callable[[Case], float] | None = None
    bytes: Callable[[Case], float] | None = None
    keeps: Callable[[Case], int] | None = None  # bytes allocated between calls, such as a cache's
    backends: tuple[str, ...] = ("cpu", "cuda")


@dataclass(frozen=True)
class Goal:
    """``variant`` shall be at least ``ratio`` times faster than ``peer`` on ``case`` (``stretch``: hoped for).

    Both do the work called ``measure``.
    """

    case: str
    measure: str
    variant: str
    peer: str
    ratio: float
    stretch: float | None = None
    backend: str = "cpu"


@dataclass(frozen=True)
class TimeGoal:
    """``variant`` shall take at most ``seconds`` on ``case`` on a GPU called ``device`` (``stretch``: hoped for)."""

    case: str
    measure: str
    variant: str
    device: str
    seconds: float
    stretch: float | None = None
    backend: str = "cuda"


@dataclass(frozen=True)
class RateGoal:
    """``variant`` shall execute at least ``flops_per_second`` on ``case`` on a GPU called ``device``, counting what the
    variant's ``flops`` counts: of sparse attention, kept blocks alone."""

    case: str
    measure: str
    variant: str
    device: str
    flops_per_second: float
    stretch: float | None = None
    backend: str = "cuda"


@dataclass(frozen=True)
class MemoryGoal:
    """``variant`` shall need at most ``limit`` times ``quantity`` on ``case``: see ``tokcore bench --memory``.

    Quantities: ``"share_of_logits"`` (memory beyond inputs and results, over the logits' bytes) and
    ``"times_lower_bound"`` (all memory beyond the inputs, over the bytes of the results).
    """

    case: str
    measure: str
    variant: str
    quantity: str
    limit: float
    backend: str = "cpu"


@dataclass(frozen=True)
class ShareGoal:
    """``variant`` shall reach at least ``share`` of the limit that binds it, a peak measured in the same run; where
    ``device`` is given, on a GPU of that name."""

    case: str
    measure: str
    variant: str
    share: float
    stretch: float | None = None
    backend: str = "cpu"
    device: str | None = None


@dataclass(frozen=True)
class SizeGoal:
    """What ``variant`` keeps allocated between calls shall be at most ``limit`` times what ``peer`` keeps."""

    case: str
    measure: str
    variant: str
    peer: str
    limit: float
    backend: str = "cpu"


AnyGoal = Goal | MemoryGoal | TimeGoal | RateGoal | ShareGoal | SizeGoal


def _logits_bytes(case: Case) -> float:
    """Of the classifier's [T, V] in fp64; 0 of an op without."""
    return 8.0 * float(case.parameters.get("T", 0)) * float(case.parameters.get("V", 0))


@dataclass(frozen=True)
class OpTable:
    """Everything that tests, bench, verify and the support table need to know of one op."""

    op: str
    cases: tuple[Case, ...]
    make_inputs: Callable[[Case, str, int], Inputs]  # (case, device, seed)
    run: Callable[[Inputs], Outputs]  # tokcore
    reference: Callable[[Inputs], Outputs]  # fp64, plain PyTorch: the specification
    composition: Callable[[Inputs], Outputs]  # what PyTorch gives in the same dtype: sets the tolerance
    variants: tuple[Variant, ...] = ()
    goals: tuple[AnyGoal, ...] = ()
    support: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # option -> {"cpu": "yes", "cuda": "no: …"}
    reference_bytes: Callable[[Case], float] = _logits_bytes  # of its largest tensor; inf: a case without reference
    sampled: Callable[[Outputs], Outputs] = lambda outputs: outputs  # what the reference computes of a large case
    waits: bool = False  # run() waits for the GPU: it drives a class that plans on the host, or reads lengths back

    def runs_on(self, backend: str) -> bool:
        """Whether any option is supported there."""
        answers = [answer[backend] for answer in self.support.values() if backend in answer]
        return backend == "cpu" or any(not answer.startswith("no") for answer in answers)

    def case(self, name: str) -> Case:
        """The case called ``name``; ``ValueError`` lists the known ones."""
        for case in self.cases:
            if case.name == name:
                return case
        known = ", ".join(case.name for case in self.cases)
        raise ValueError(f"{self.op}: unknown case {name!r}; known: {known}")
