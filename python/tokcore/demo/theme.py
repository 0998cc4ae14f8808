"""Colours of every picture, once for light and once for dark pages."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Theme:
    """``series`` colours the losses by name; ``ramp`` goes from low to high entropy, dark enough or light enough
    everywhere for text in ``ink`` to be read on it."""

    name: str
    page: str
    ink: str
    muted: str
    grid: str
    series: dict[str, str]
    accent: str
    ramp: tuple[str, ...]
    mark: str


LIGHT = Theme(
    name="light",
    page="#ffffff",
    ink="#1c2430",
    muted="#5c6675",
    grid="#e3e7ed",
    series={"tokcore": "#1f6feb", "eager": "#d9730d", "eager upcast": "#8a93a0"},
    accent="#0f8a6d",
    ramp=("#ffffff", "#fff4dd", "#ffe3ae", "#ffcb80", "#ffaf64", "#fb8f57"),
    mark="#b3123b",
)
DARK = Theme(
    name="dark",
    page="#12161c",
    ink="#e6eaf0",
    muted="#98a2b0",
    grid="#2a313b",
    series={"tokcore": "#5aa2ff", "eager": "#f0954a", "eager upcast": "#7f8896"},
    accent="#3fc6a0",
    ramp=("#12161c", "#2a2320", "#493022", "#6b3f22", "#8d4c20", "#a5521a"),
    mark="#ff7d9c",
)
THEMES = (LIGHT, DARK)


def ramp_color(theme: Theme, value: float) -> str:
    """The colour at ``value`` in [0, 1] of the theme's entropy ramp, interpolated linearly."""
    position = min(max(value, 0.0), 1.0) * (len(theme.ramp) - 1)
    index = min(int(position), len(theme.ramp) - 2)
    weight = position - index
    low, high = (_channels(theme.ramp[i]) for i in (index, index + 1))
    return "#" + "".join(f"{round(a + (b - a) * weight):02x}" for a, b in zip(low, high, strict=True))


def _channels(color: str) -> tuple[int, ...]:
    return tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
