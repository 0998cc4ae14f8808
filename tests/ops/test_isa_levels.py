"""Each instruction-set level, forced in a process of its own, passes every verified case."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tokcore import _library

LEVELS = ("baseline", "avx2", "avx512", "amx")


@pytest.mark.parametrize("level", LEVELS)
def test_level(level: str) -> None:
    if level not in _library.cpu_isa_levels():
        pytest.skip(f"this machine runs {', '.join(_library.cpu_isa_levels())} only")
    worker = Path(__file__).with_name("level_worker.py")
    environment = {
        **os.environ,
        "TOKCORE_MAX_ISA": level,
        "PYTHONPATH": os.pathsep.join([*filter(None, sys.path), str(worker.parent)]),
    }
    done = subprocess.run([sys.executable, worker], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"level {level}\n"


def test_levels_are_listed_lowest_first() -> None:
    levels = _library.cpu_isa_levels()
    assert levels == LEVELS[: len(levels)]
    assert _library.cpu_isa() in levels
