"""The files that a run leaves: everything as JSON, the text that was printed, and a plot for each op."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokcore.cli.gpu_check.stage import Stage


def stage_text(stage: Stage) -> str:
    """The stage as it is printed."""
    return "\n".join([f"== {stage.name}: {stage.status} ({stage.seconds:.0f} s)", *stage.lines, ""])


def summary_text(stages: Sequence[Stage]) -> str:
    """One line that says what passed, what failed and what could not run."""
    return "gpu-check: " + ", ".join(f"{stage.name} {stage.status}" for stage in stages)


def write_files(out: Path, stages: Sequence[Stage], *, plots: bool = True) -> list[str]:
    """Writes gpu-check.json, gpu-check.txt and the plots; returns what could not be written and why.

    Each file takes the place of the one before as a whole: whoever stops the run finds what was known by then.
    """
    document: dict[str, Any] = {
        "schema": 1,
        "kind": "tokcore gpu-check",
        "stages": [vars(stage) for stage in stages],
    }
    _replace(out / "gpu-check.json", json.dumps(_finite(document), indent=1) + "\n")
    timed = [stage for stage in stages if stage.name == "bench"] if plots else []
    problems = [problem for stage in timed for problem in _draw(out, stage)]
    text = [*map(stage_text, stages), *problems, summary_text(stages)]
    _replace(out / "gpu-check.txt", "\n".join(text) + "\n")
    return problems


def _replace(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text(text)
    beside.replace(path)


def _draw(out: Path, stage: Stage) -> list[str]:
    try:
        from tokcore.cli.bench.plot import draw
    except ImportError as error:
        return [f"no plots: {error}"]
    for op, document in stage.data.get("documents", {}).items():
        draw(document, out / f"{op}.png")
    return []


def _finite(value: Any) -> Any:
    """JSON has no word for infinities and NaN."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
