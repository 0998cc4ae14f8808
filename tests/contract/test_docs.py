"""What the documents show works: their Python runs, their commands exist, their tables are complete."""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [p for p in PAGES if FENCE.search(p.read_text())], ids=name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All blocks of a page run in order in one namespace; blocks with prompts are compared with the output shown."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for number, block in enumerate(FENCE.findall(page.read_text())):
        label = f"{name(page)}[{number}]"
        if ">>>" not in block:
            exec(compile(block, label, "exec"), namespace)
            continue
        test = doctest.DocTestParser().get_doctest(block, namespace, label, str(page), 0)
        report: list[str] = []
        runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
        runner.run(test, out=report.append, clear_globs=False)
        assert runner.summarize(verbose=False).failed == 0, "".join(report)
        namespace.update(test.globs)


@pytest.mark.parametrize(
    "op",
    [
        "attention_block_scores",
        "block_mask",
        "block_sparse_attention",
        "calibrate_paro",
        "decode_attention",
        "kv_append",
        "kv_compact",
        "kv_quantize",
        "kv_retier",
        "kv_saliency",
        "linear_cross_entropy",
        "linear_logprobs",
        "paro_attention",
        "sample",
        "token_tree",
    ],
)
def test_every_op_has_a_page_that_runs(op: str) -> None:
    assert FENCE.search((ROOT / "docs" / "ops" / f"{op}.md").read_text())


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = page.read_text()
    code = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^```(?:bash|sh|console)?\n(.*?)^```$", text, re.M | re.S)
    shown = {target for piece in code for target in re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)\b", piece)}
    assert shown - targets == set()


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_environment_variables_are_in_the_readme_table() -> None:
    literal = re.compile(r'"(TOKCORE_[A-Z_]+)"')
    files = [
        p
        for d in ("python", "csrc", "include")
        for p in (ROOT / d).rglob("*")
        if p.suffix in {".py", ".h", ".cc", ".cpp"}
    ]
    read = {variable for p in files for variable in literal.findall(p.read_text())}
    listed = set(re.findall(r"^\| `(TOKCORE_[A-Z_]+)`", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert read == listed
    assert len(listed) <= 6


def test_support_page_is_current() -> None:
    page = str(ROOT / "docs" / "support.md")
    command = [sys.executable, "-m", "tokcore.cli.support", page, "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
