"""The layers depend downwards only: what stands in ``include/`` is usable without torch."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TORCH_INCLUDE = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|pybind11|Python\.h)')


def sources(*folders: str) -> list[Path]:
    suffixes = {".h", ".hpp", ".cc", ".cpp", ".cu", ".cuh"}
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*") if p.suffix in suffixes)


def test_include_tree_has_no_torch_header() -> None:
    headers = sources("include")
    assert headers, "include/ holds the torch-free layer and cannot be empty"
    assert [str(p.relative_to(ROOT)) for p in headers if TORCH_INCLUDE.search(p.read_text())] == []


def test_kernels_have_no_torch_header() -> None:
    kernels = [p for p in sources("csrc") if p.name.endswith("_kernel.cc")]
    assert kernels, "csrc/<family>/<op>_kernel.cc: one CPU kernel source per op"
    assert [str(p.relative_to(ROOT)) for p in kernels if TORCH_INCLUDE.search(p.read_text())] == []


def test_only_the_stable_torch_headers_are_used() -> None:
    allowed = re.compile(r'#\s*include\s*[<"](torch/csrc/stable/|torch/csrc/inductor/aoti_torch/c/|torch/headeronly/)')
    used = [(p, line) for p in sources("csrc") for line in p.read_text().splitlines() if TORCH_INCLUDE.search(line)]
    assert used, "csrc/ is the torch-facing layer"
    assert [(str(p.relative_to(ROOT)), line) for p, line in used if not allowed.search(line)] == []
