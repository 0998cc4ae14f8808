from __future__ import annotations

import dataclasses
import html
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from tokcore.demo.render_html import EntropyScale, entropy_scale, marked_count, write_html
from tokcore.demo.render_png import excerpt_start, layout, write_pngs
from tokcore.demo.score import ScoredText
from tokcore.demo.theme import DARK, LIGHT, Theme, ramp_color

VOID = {"meta"}


class _Balanced(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def page_of(scored: ScoredText, folder: Path) -> str:
    write_html(scored, folder / "page.html")
    return (folder / "page.html").read_text(encoding="utf-8")


def test_page_is_well_formed_and_needs_nothing_else(scored: ScoredText, tmp_path: Path) -> None:
    page = page_of(scored, tmp_path)
    parser = _Balanced()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"<script|<link|src=|https?:|url\(", page)
    assert "prefers-color-scheme:dark" in page


def test_page_holds_the_text_and_escapes_it(scored: ScoredText, tmp_path: Path) -> None:
    page = page_of(scored, tmp_path)
    shown = html.unescape(re.sub(r"<[^>]*>", "", page[page.index("<pre>") + 5 : page.index("</pre>")]))
    assert shown == "".join(scored.texts)
    assert "&lt;script&gt;" in page


def test_page_marks_the_highest_entropies(scored: ScoredText, tmp_path: Path) -> None:
    page = page_of(scored, tmp_path)
    marked = [int(position) for position in re.findall(r'id="t(\d+)"', page)]
    assert sorted(marked) == sorted(scored.highest_entropy(marked_count(scored)))
    for position in re.findall(r'href="#t(\d+)"', page):
        assert f'id="t{position}"' in page


def test_scale_ignores_outliers_and_survives_bad_values(scored: ScoredText) -> None:
    scale = entropy_scale(scored)
    assert 0.5 <= scale.low < 0.8
    assert 5.7 < scale.high <= 6.0
    assert [scale.position(v) for v in (-math.inf, scale.low, scale.high, 99.0, math.nan)] == [0.0, 0.0, 1.0, 1.0, 1.0]
    constant = dataclasses.replace(scored, entropy=torch.full_like(scored.entropy, 2.0))
    assert entropy_scale(constant).position(2.0) == 0.0
    broken = dataclasses.replace(scored, entropy=torch.full_like(scored.entropy, math.nan))
    assert entropy_scale(broken) == EntropyScale(0.0, 1.0)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_text_can_be_read_on_every_colour(theme: Theme) -> None:
    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert ramp_color(theme, 0.0) == theme.ramp[0] == theme.page
    assert ramp_color(theme, 1.0) == theme.ramp[-1]
    for step in range(33):
        pair = sorted((luminance(theme.ink), luminance(ramp_color(theme, step / 32))))
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5  # the contrast that accessibility rules ask for


def test_layout_puts_every_character_in_its_cell(scored: ScoredText) -> None:
    text = "".join(scored.texts).replace("\t", "    ")
    lines = text.split("\n")
    pieces = list(layout(scored, 2, 5, columns=10))
    grid = [[" "] * 10 for _ in range(5)]
    for piece in pieces:
        for offset, character in enumerate(piece.text):
            grid[piece.line][piece.column + offset] = character
    assert ["".join(row).rstrip() for row in grid] == [line[:10].rstrip() for line in lines[2:7]]


def test_excerpt_has_the_most_marked_tokens(scored: ScoredText) -> None:
    entropy = torch.ones_like(scored.entropy)
    position = len(scored.texts) - 10  # "return" on one of the last lines
    assert scored.texts[position] == "return"
    entropy[position : position + marked_count(scored)] = 9.0
    focused = dataclasses.replace(scored, entropy=entropy)
    line = "".join(scored.texts[:position]).count("\n")
    start = excerpt_start(focused, 4)
    assert start <= line < start + 4


def test_pictures_are_written(scored: ScoredText, tmp_path: Path) -> None:
    paths = write_pngs(scored, tmp_path)
    assert [path.name for path in paths] == ["entropy_light.png", "entropy_dark.png"]
    images = [path.read_bytes() for path in paths]
    assert all(image.startswith(b"\x89PNG") and len(image) > 10_000 for image in images)
    assert images[0] != images[1]
