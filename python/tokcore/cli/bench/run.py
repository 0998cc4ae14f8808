"""Running a benchmark: prepares the variants of one case, times them interleaved, and fills in the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokcore.cli.bench.goals import judge
from tokcore.cli.bench.results import CaseResult, MaxError, Missing, Row
from tokcore.testing import cuda
from tokcore.testing.backend import Backend
from tokcore.testing.buffers import copies_needed, copy_inputs
from tokcore.testing.memory import measure_variant
from tokcore.testing.peaks import Peaks
from tokcore.testing.table import Case, Inputs, OpTable, Variant
from tokcore.testing.timing import Contestant, interleave, paired_ratio, summarize
from tokcore.testing.worker import WorkerError


@dataclass(frozen=True)
class Settings:
    """How a benchmark runs."""

    seconds: float
    threads: int
    seed: int
    error: bool
    memory: bool
    tables: str
    backend: Backend = field(default_factory=Backend)
    limit: float = float("inf")  # seconds of timing a case and measure, whatever the least number of rounds


def run_case(
    table: OpTable,
    case: Case,
    measure: str,
    variants: Sequence[Variant],
    settings: Settings,
    peaks: Peaks,
    on_fraction: Callable[[float], None] = lambda _: None,
    on_phase: Callable[[str], None] = lambda _: None,
) -> CaseResult:
    """Times ``variants`` (all of ``measure``) on one case."""
    backend = settings.backend
    result = CaseResult(case, measure, backend.name)
    on_phase("inputs and reference")
    inputs = table.make_inputs(case, backend.name, settings.seed)
    copies_to_make = copies_needed(inputs, backend.cache_bytes(), limit_bytes=backend.copy_limit_bytes) - 1
    copies = [inputs, *(copy_inputs(inputs) for _ in range(copies_to_make))]
    reference = _reference(table, case, inputs, backend.reference_limit_bytes) if settings.error else None
    runnable: list[tuple[Variant, Contestant, MaxError | None]] = []
    for variant in variants:
        reason = variant.unavailable(case)
        if reason is not None:
            result.missing.append(Missing(variant.name, reason))
            continue
        on_phase(f"warming up {variant.name}")
        try:
            calls, error = _warm_up(table, variant, case, copies, reference)
            calls, timed = backend.tune(calls)
        except Exception as exception:  # a peer may raise anything at all; the others still run
            lines = str(exception).strip().splitlines()
            text = f"{type(exception).__name__}: {lines[0] if lines else 'no message'}"
            result.missing.append(Missing(variant.name, text, failed=not variant.peer))
            continue
        contestant = Contestant(variant.name, calls, variant.slow, paced=timed != "events", timed=timed)
        runnable.append((variant, contestant, error))
    del reference
    on_phase("timing")
    peaks.measure(backend.peak_kinds, backend.peak_seconds, backend.probe())
    samples = interleave(
        [contestant for _, contestant, _ in runnable],
        settings.seconds,
        min_rounds=backend.min_rounds,
        limit=settings.limit,
        seconds_of=backend.seconds_of,
        on_call=on_fraction,
    )
    peaks.measure(backend.peak_kinds, backend.peak_seconds, backend.probe())
    result.baseline = next((variant.name for variant, _, _ in runnable if variant.peer), None)
    for variant, contestant, error in runnable:
        row = _row(variant, case, samples[variant.name], peaks, error)
        row.timed = contestant.timed
        row.speedup = paired_ratio(samples[result.baseline], row.samples) if result.baseline else None
        result.rows.append(row)
    if settings.memory:
        del inputs, copies, runnable  # the fresh processes need the room
        for row in result.rows:
            on_phase(f"memory of {row.variant}")
            _measure_memory(row, table.op, case, variants, settings)
    result.goals = judge(table.goals, result, cuda.device_name() if backend.name == "cuda" else None)
    return result


def _warm_up(
    table: OpTable, variant: Variant, case: Case, copies: Sequence[Inputs], reference: Mapping[str, Tensor] | None
) -> tuple[Sequence[Callable[[], Any]], MaxError | None]:
    calls = [variant.prepare(case, inputs) for inputs in (copies[:1] if variant.slow else copies)]
    first = calls[0]()
    comparable = reference is not None and isinstance(first, Mapping)
    error = max_error(table.sampled(dict(first)) if comparable else first, reference or {})
    del first
    for call in calls[1:]:
        call()
    return calls, error


def _row(variant: Variant, case: Case, samples: dict[int, float], peaks: Peaks, error: MaxError | None) -> Row:
    row = Row(variant.name, variant.peer, summarize(samples), samples, error=error)
    row.keeps = variant.keeps(case) if variant.keeps is not None else None
    dtype = case.parameters.get("dtype")
    limits: list[tuple[float, tuple[str, float] | None]] = []
    if variant.flops is not None:
        row.flops = variant.flops(case) / row.summary.median
        limits.append((row.flops, peaks.arithmetic(dtype) if isinstance(dtype, torch.dtype) else None))
    if variant.bytes is not None:
        row.bytes = variant.bytes(case) / row.summary.median
        limits.append((row.bytes, peaks.bandwidth()))
    shares = [(rate / peak[1], peak) for rate, peak in limits if peak is not None]
    row.peak_share, row.peak = max(shares, default=(None, None))  # the limit that is nearer is the one that binds
    return row


def _measure_memory(row: Row, op: str, case: Case, variants: Sequence[Variant], settings: Settings) -> None:
    (variant,) = [variant for variant in variants if variant.name == row.variant]
    try:
        row.memory = measure_variant(
            op,
            case,
            variant,
            threads=settings.threads,
            tables=settings.tables,
            device=settings.backend.name,
        )
    except (WorkerError, OSError) as error:
        row.memory_missing = str(error)


def _reference(table: OpTable, case: Case, inputs: Inputs, limit_bytes: int) -> dict[str, Tensor] | None:
    return table.reference(inputs) if table.reference_bytes(case) <= limit_bytes else None


def max_error(outputs: Any, reference: Mapping[str, Tensor]) -> MaxError | None:
    """The worst of the outputs that the reference has too; None for outputs without such names."""
    if not isinstance(outputs, Mapping):
        return None
    errors = [
        MaxError(name, _relative_error(outputs[name], expected))
        for name, expected in reference.items()
        if isinstance(outputs.get(name), Tensor) and expected.is_floating_point() and expected.numel()
    ]
    return max(errors, key=lambda error: error.value, default=None)


def _relative_error(output: Tensor, expected: Tensor) -> float:
    if output.shape != expected.shape:
        return float("inf")
    difference = (output.detach().double() - expected.double()).abs()
    scale = expected.double().abs().max().item()
    worst = difference.max().item()
    return worst / scale if scale > 0 else worst
