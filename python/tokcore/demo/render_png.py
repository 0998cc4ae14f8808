"""An excerpt of a scored text as a picture: monospaced text on a background coloured by entropy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokcore.demo.render_html import MARKED_SHARE, EntropyScale, entropy_scale, marked_count
from tokcore.demo.score import ScoredText
from tokcore.demo.theme import THEMES, Theme, ramp_color

LINES = 46
COLUMNS = 88
TAB = "    "
FONT = "DejaVu Sans Mono"  # comes with matplotlib


@dataclass(frozen=True)
class Piece:
    """Part of a token on one line of the picture: ``text`` starts at (line, column), counted from 0."""

    position: int
    line: int
    column: int
    text: str


def layout(scored: ScoredText, first_line: int, num_lines: int, columns: int = COLUMNS) -> Iterator[Piece]:
    """Lay out the text's lines ``first_line`` .. ``first_line + num_lines``, cut at ``columns`` characters."""
    line, column = 0, 0
    for position, text in enumerate(scored.texts):
        for index, part in enumerate(text.replace("\t", TAB).split("\n")):
            if index:
                line, column = line + 1, 0
            if line >= first_line + num_lines:
                return
            visible = part[: max(0, columns - column)]
            if visible and line >= first_line:
                yield Piece(position, line - first_line, column, visible)
            column += len(part)


def excerpt_start(scored: ScoredText, num_lines: int) -> int:
    """First of the ``num_lines`` lines that hold the most marked tokens; the earliest such."""
    total = "".join(scored.texts).count("\n") + 1
    counts = [0] * total  # marked tokens by line
    line = 0
    marked = frozenset(scored.highest_entropy(marked_count(scored)))
    for position, token in enumerate(scored.texts):
        if position in marked:
            counts[line + token[: len(token) - len(token.lstrip())].count("\n")] += 1
        line += token.count("\n")
    starts = range(max(1, total - num_lines + 1))
    return max(starts, key=lambda start: (sum(counts[start : start + num_lines]), -start))


def write_pngs(scored: ScoredText, folder: Path, stem: str = "entropy") -> list[Path]:
    """Write ``<stem>_light.png`` and ``<stem>_dark.png`` into ``folder``."""
    first = excerpt_start(scored, LINES)
    paths = []
    for theme in THEMES:
        path = folder / f"{stem}_{theme.name}.png"
        _draw(scored, first, theme, path)
        paths.append(path)
    return paths


def _draw(scored: ScoredText, first_line: int, theme: Theme, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch, Rectangle

    scale = entropy_scale(scored)
    marked = frozenset(scored.highest_entropy(marked_count(scored)))
    pieces = list(layout(scored, first_line, LINES))
    lines = max(piece.line for piece in pieces) + 1
    cell_width, cell_height, header = 0.0835, 0.178, 0.95  # inches; a 10 point monospaced character is 0.0836 wide
    width, height = (COLUMNS + 4) * cell_width, lines * cell_height + header + 0.2
    figure = Figure(figsize=(width, height), dpi=150, facecolor=theme.page)
    FigureCanvasAgg(figure)
    axes: Any = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(-2, COLUMNS + 2)
    axes.set_ylim(lines + 0.2 / cell_height, -header / cell_height)
    for piece in pieces:
        color = ramp_color(theme, scale.position(scored.entropy[piece.position].item()))
        top = 0.0 if piece.text.strip() else 0.8  # white space is a strip: as a block it would outweigh the text
        cell = Rectangle((piece.column, piece.line + top), len(piece.text), 1.0 - top, color=color, linewidth=0)
        axes.add_patch(cell)
    drawable = _glyphs()
    for piece in pieces:
        is_marked = piece.position in marked and piece.text.strip() != ""
        if is_marked:
            box = FancyBboxPatch(
                (piece.column, piece.line + 0.07), len(piece.text), 0.86, boxstyle="round,pad=0,rounding_size=0.25",
                facecolor="none", edgecolor=theme.mark, linewidth=1.3,
            )  # fmt: skip
            axes.add_patch(box)
        for offset, character in enumerate(piece.text):
            if not character.isspace():  # one by one: fonts round their widths, cells do not
                axes.text(
                    piece.column + offset + 0.5, piece.line + 0.74,
                    character if ord(character) in drawable else "\N{REPLACEMENT CHARACTER}",
                    color=theme.ink, fontsize=9.4, family=FONT, ha="center", va="baseline",
                    weight="bold" if is_marked else "normal", parse_math=False,
                )  # fmt: skip
    _header(axes, scored, first_line, lines, scale, theme, header / cell_height)
    figure.savefig(path, facecolor=theme.page)


def _glyphs() -> frozenset[int]:
    """Code points that the font can draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    return frozenset(get_font(findfont(FontProperties(family=FONT))).get_charmap())


def _header(
    axes: Any, scored: ScoredText, first_line: int, lines: int, scale: EntropyScale, theme: Theme, height: float
) -> None:
    from matplotlib.patches import Rectangle

    top = -height
    title = f"{scored.name}, lines {first_line + 1} to {first_line + lines}, coloured by the model's entropy per token"
    axes.text(0, top + 1.5, title, color=theme.ink, fontsize=12, weight="bold", va="baseline", parse_math=False)
    quality = f"{scored.loss:.2f} nats per token, {scored.bits_per_byte:.2f} bits per byte"
    numbers = f"held out from training; whole file: {quality}"
    axes.text(0, top + 2.75, numbers, color=theme.muted, fontsize=9.5, va="baseline", parse_math=False)
    row = top + 3.3
    steps = 32
    axes.text(0, row + 0.78, f"≤ {scale.low:.1f} nats", color=theme.muted, fontsize=9.5, va="baseline")
    for step in range(steps):
        color = ramp_color(theme, step / (steps - 1))
        axes.add_patch(Rectangle((10 + step * 0.6, row), 0.62, 1, color=color, linewidth=0))
    axes.add_patch(Rectangle((10, row), steps * 0.6, 1, facecolor="none", edgecolor=theme.grid, linewidth=1))
    axes.text(30, row + 0.78, f"≥ {scale.high:.1f} nats", color=theme.muted, fontsize=9.5, va="baseline")
    axes.add_patch(Rectangle((42, row), 2.4, 1, facecolor="none", edgecolor=theme.mark, linewidth=1.3))
    label = f"the {MARKED_SHARE:.0%} of tokens with the highest entropy"
    axes.text(45.2, row + 0.78, label, color=theme.muted, fontsize=9.5, va="baseline", parse_math=False)
