"""What the act found, as tables, verdicts and CSV files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from tokcore.demo.kv_cache.generation import Generated, Latency
from tokcore.demo.kv_cache.perplexity import Quality
from tokcore.demo.kv_cache.retrieval import PER_TENSOR, Retrieved
from tokcore.demo.kv_cache.retrieval_task import RetrievalSettings, RetrievalTraining
from tokcore.demo.kv_cache.schemes import INT4_ROTATED, MIXED
from tokcore.demo.tables import write_csv

MOST_PERPLEXITY = 1.01  # of bf16's
LEAST_LEARNT = 0.9  # of the questions over a bf16 cache: less says nothing of caches
RETAINED = 0.03  # of accuracy that four bits may lose
EVICTED = 0.15  # and that eviction must lose at least, or the task would not need its tokens
COLLAPSED = 0.5  # of bf16's accuracy: what the per-tensor baseline must fall below

WHAT_RETRIEVAL_IS = (
    "Retrieval: {planted} lines of a value and its key are planted, filler follows, then keys are asked for. A minute "
    "of code does not teach the demo's model to look up: a model of its kind with {layers} layers and "
    "{parameters:.2f} M parameters was trained for it by a curriculum, {steps} steps in {seconds:.0f} s."
)


@dataclass(frozen=True)
class Findings:
    """All measurements of the act."""

    quality: Sequence[Quality]
    generated: Sequence[Generated]
    text: str  # prompt's end and bf16's continuation
    latency: Sequence[Latency]
    training: RetrievalTraining
    task: RetrievalSettings
    retrieved: Sequence[Retrieved]
    outliers: Sequence[Retrieved]


@dataclass(frozen=True)
class Verdict:
    """One claim of the act, and whether it held."""

    passed: bool
    claim: str
    found: str


def judge(findings: Findings) -> list[Verdict]:
    """The act's claims."""
    perplexity = {quality.scheme: quality.perplexity for quality in findings.quality}
    verdicts = []
    for name in (INT4_ROTATED.name, MIXED.name):
        ratio = perplexity[name] / perplexity["bf16"]
        claim = f"perplexity over {name} within 1 % of bf16"
        verdicts.append(Verdict(ratio <= MOST_PERPLEXITY, claim, f"{ratio - 1:+.2%}"))
    accuracy = {found.scheme: found.accuracy for found in findings.retrieved}
    full, evicted = accuracy["bf16"], accuracy["evict the less important half"]
    kept = accuracy["retain that half in int4"]
    verdicts += [
        Verdict(full >= LEAST_LEARNT, f"the retrieval model learnt its task ({LEAST_LEARNT:.0%})", f"{full:.1%}"),
        Verdict(kept >= full - RETAINED, f"half retained in int4 loses at most {RETAINED:.0%}", f"{kept - full:+.1%}"),
        Verdict(evicted <= full - EVICTED, f"half evicted loses more than {EVICTED:.0%}", f"{evicted - full:+.1%}"),
    ]
    outlying = {found.scheme: found.accuracy for found in findings.outliers}
    base, reference = outlying[PER_TENSOR], outlying["bf16"]
    verdicts.append(
        Verdict(base < COLLAPSED * reference, "100x outlier channel: one scale per tensor collapses", f"{base:.1%}")
    )
    for name in ("int4 by token, balanced", "int4, keys by channel"):
        held = outlying[name]
        claim = f"100x outlier channel: {name} loses at most {RETAINED:.0%}"
        verdicts.append(Verdict(held >= reference - RETAINED, claim, f"{held - reference:+.1%}"))
    return verdicts


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def report(findings: Findings, verdicts: Sequence[Verdict]) -> list[RenderableType]:
    """Tables and lines in the order in which they are printed."""
    config = findings.training.model.config
    parameters = sum(parameter.numel() for parameter in findings.training.model.parameters())
    explanation = WHAT_RETRIEVAL_IS.format(
        planted=findings.task.stages[-1][0],
        layers=config.num_layers,
        parameters=parameters / 1e6,
        steps=findings.training.steps,
        seconds=findings.training.seconds,
    )
    parts: list[RenderableType] = [_quality_table(findings), _latency_table(findings.latency), explanation]
    parts.append(_retrieval_table("Needles found, half of the cache in question", findings.retrieved))
    parts.append(_retrieval_table("Needles found, keys with a 100x outlier channel", findings.outliers))
    for verdict in verdicts:
        state = "[bold green]PASS[/]" if verdict.passed else "[bold red]FAIL[/]"
        parts.append(f"{state} {escape(verdict.claim)}: {verdict.found}")
    return parts


def equal_tokens(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts begin with in common."""
    pairs = zip(first, second, strict=True)
    return next((index for index, (a, b) in enumerate(pairs) if a != b), len(first))


def _quality_table(findings: Findings) -> Table:
    columns = ("cache", "perplexity", "against bf16", "bytes a token", "of bf16", "tokens/s", "first tokens as bf16")
    table = _table("Held-out text over caches of the trained model", columns)
    base = findings.quality[0]
    reference = findings.generated[0]
    for quality, generated in zip(findings.quality, findings.generated, strict=True):
        table.add_row(
            quality.scheme,
            f"{quality.perplexity:.3f}",
            f"{quality.perplexity / base.perplexity - 1:+.2%}",
            f"{quality.bytes_per_token:.0f}",
            f"{quality.bytes_per_token / base.bytes_per_token:.2f}x",
            f"{1 / generated.step_seconds:.0f}",
            f"{equal_tokens(reference.tokens, generated.tokens)} of {len(generated.tokens)}",
        )
    table.caption = f"bf16 writes: {escape(findings.text)}"
    table.caption_justify = "left"
    return table


def _latency_table(latency: Sequence[Latency]) -> Table:
    lengths = sorted({found.length for found in latency})
    table = _table("One decoded token of the whole model, by cached length", ("cache", *(f"{n}" for n in lengths)))
    for name in dict.fromkeys(found.scheme for found in latency):
        by_length = {found.length: found.seconds for found in latency if found.scheme == name}
        table.add_row(name, *(f"{1e3 * by_length[length]:.2f} ms" for length in lengths))
    return table


def _retrieval_table(title: str, retrieved: Sequence[Retrieved]) -> Table:
    table = _table(title, ("cache", "right answers", "bytes a token"))
    for found in retrieved:
        memory = "emulated" if found.bytes_per_token is None else f"{found.bytes_per_token:.0f}"
        table.add_row(found.scheme, f"{found.accuracy:.1%}", memory)
    return table


def write_tables(folder: Path, findings: Findings) -> list[Path]:
    """Write kv_quality.csv, kv_latency.csv and kv_retrieval.csv into ``folder``."""
    quality = (
        [q.scheme, q.perplexity, q.bytes_per_token, g.step_seconds, " ".join(map(str, g.tokens))]
        for q, g in zip(findings.quality, findings.generated, strict=True)
    )
    retrieval = (
        [task, r.scheme, r.accuracy, r.bytes_per_token]
        for task, results in (("memory", findings.retrieved), ("outlier channel", findings.outliers))
        for r in results
    )
    return [
        write_csv(
            folder / "kv_quality.csv", ["cache", "perplexity", "bytes_per_token", "step_seconds", "tokens"], quality
        ),
        write_csv(
            folder / "kv_latency.csv",
            ["cache", "length", "seconds"],
            ([found.scheme, found.length, found.seconds] for found in findings.latency),
        ),
        write_csv(folder / "kv_retrieval.csv", ["task", "cache", "accuracy", "bytes_per_token"], retrieval),
    ]
