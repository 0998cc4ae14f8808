"""What the act found: tables, claims and CSV files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from tokcore.cli.calibrate.tables import rows
from tokcore.cli.calibrate.tables import table as plan_table
from tokcore.demo.sparse_attention.features import NUM_HEADS
from tokcore.demo.sparse_attention.measure import ARITHMETIC, BASELINE, SPARSE, Variant, flops
from tokcore.demo.sparse_attention.prefill import Prefill
from tokcore.demo.tables import write_csv
from tokcore.paro import ParoPlan

PREDICTED = 1.0  # dB between the plan's PSNR of a head and the measured one: both are bf16, in another order of sums
VIDEO_LOSS = 1.0  # dB of the frames that sparse attention may cost against dense


@dataclass(frozen=True)
class Claim:
    """Something the act shows, and whether it held."""

    passed: bool
    text: str


@dataclass(frozen=True)
class Findings:
    """All that the act measured."""

    plan: ParoPlan
    reading_recall: float  # mean recall of masks of the same density in reading order
    noisy_psnr: float
    variants: Sequence[Variant]
    prefills: Sequence[Prefill]
    num_text_tokens: int


def judge(findings: Findings) -> list[Claim]:
    """The act's claims."""
    by_name = {variant.name: variant for variant in findings.variants}
    recall = float(findings.plan.recall.double().mean())
    pairs = zip(findings.plan.psnr[0, 0].tolist(), by_name[SPARSE].head_psnr, strict=True)
    apart = max(abs(predicted - measured) for predicted, measured in pairs)
    dense = by_name[BASELINE].video_psnr
    claims = [
        Claim(
            recall >= findings.reading_recall,
            f"reordered masks hold {recall:.1%} of the attention, masks of equal density in reading order "
            f"{findings.reading_recall:.1%}",
        ),
        Claim(
            apart <= PREDICTED,
            f"the plan predicts each head's PSNR within {apart:.2f} dB (allowed {PREDICTED} dB)",
        ),
    ]
    for name in ARITHMETIC:
        lost = dense - by_name[name].video_psnr
        claims.append(
            Claim(lost <= VIDEO_LOSS, f"{name}: frames lose {lost:.2f} dB against dense (allowed {VIDEO_LOSS} dB)")
        )
    return claims


def report(findings: Findings, claims: Sequence[Claim]) -> list[RenderableType]:
    """The tables and the claims."""
    lines = [
        f"{'[bold green]PASS[/]' if claim.passed else '[bold red]FAIL[/]'} {escape(claim.text)}" for claim in claims
    ]
    return [plan_table(findings.plan), _video_table(findings), _prefill_table(findings), *lines]


def _video_table(findings: Findings) -> Table:
    grid = findings.plan.grid
    title = f"Attention of a video of {grid[0]}x{grid[1]}x{grid[2]} patches, {NUM_HEADS} heads, interleaved"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("attention", "density", "time", "TFLOP/s", "x SDPA", "rel. L2 error", "output PSNR", "video PSNR"):
        table.add_column(name, justify="left" if name == "attention" else "right")
    for variant in findings.variants:
        rate = flops(findings.plan.num_tokens, NUM_HEADS, variant.density) / variant.seconds / 1e12
        table.add_row(
            escape(variant.name),
            f"{variant.density:.1%}",
            f"{1e3 * variant.seconds:.0f} ms",
            f"{rate:.2f}",
            f"{variant.speedup:.2f}x",
            f"{variant.error:.2%}",
            f"{variant.output_psnr:.1f} dB",
            f"{variant.video_psnr:.2f} dB",
        )
    table.caption = (
        f"dense calls get q and k after RoPE; sparse ones rotate, reorder and quantize within the call; FLOPs of kept "
        f"blocks; the noisy video has {findings.noisy_psnr:.2f} dB"
    )
    return table


def _prefill_table(findings: Findings) -> Table:
    title = f"The language model reads {findings.num_text_tokens} held-out tokens at once, interleaved"
    table = Table(title=title, title_justify="left", title_style="bold")
    for name in ("attention", "of the causal blocks", "time of the model", "x dense", "loss"):
        table.add_column(name, justify="left" if name == "attention" else "right")
    for prefill in findings.prefills:
        table.add_row(
            escape(prefill.name),
            f"{prefill.density:.1%}",
            f"{1e3 * prefill.seconds:.0f} ms",
            f"{prefill.speedup:.2f}x",
            f"{prefill.loss:.4f}",
        )
    table.caption = "the model was trained on windows: farther than those it sees positions it never saw"
    return table


def write_tables(folder: Path, findings: Findings) -> list[Path]:
    """Write sparse_attention_{heads,variants,prefill}.csv."""
    heads = ("step", "layer", "head", "order", "class", "density", "recall", "psnr_db")
    columns = ("attention", "density", "seconds", "speedup", "relative_error", "output_psnr_db", "video_psnr_db")
    of_variants = (
        (v.name, v.density, v.seconds, v.speedup, v.error, v.output_psnr, v.video_psnr) for v in findings.variants
    )
    of_prefills = ((p.name, p.density, p.seconds, p.speedup, p.loss) for p in findings.prefills)
    return [
        write_csv(folder / "sparse_attention_heads.csv", heads, rows(findings.plan)),
        write_csv(folder / "sparse_attention_variants.csv", columns, of_variants),
        write_csv(
            folder / "sparse_attention_prefill.csv", ("attention", "density", "seconds", "speedup", "loss"), of_prefills
        ),
    ]
