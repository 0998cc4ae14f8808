from __future__ import annotations

import csv
import importlib.util
import io
import json
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from tokcore.demo import costs, pipeline, run_demo
from tokcore.demo.agreement import Agreement
from tokcore.demo.checkpoint import default_cache, load_checkpoint
from tokcore.demo.corpus import load_corpus
from tokcore.demo.score import score_document
from tokcore.demo.settings import DemoSettings
from tokcore.testing.memory import PeakMemory
from tokcore.testing.worker import WorkerError

PICTURES = [
    f"{stem}_{theme}.png"
    for stem in ("entropy", "loss_curves", "loss_cost", "filter_rate")
    for theme in ("light", "dark")
]


@pytest.fixture(autouse=True)
def first_act_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others have tests of their own."""
    monkeypatch.setattr(pipeline, "ACTS", ())


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_from_text_to_report(library: Path, settings: DemoSettings, tmp_path: Path) -> None:
    file = io.StringIO()
    out, cache = tmp_path / "new" / "out", tmp_path / "cache"
    console = Console(file=file, width=200)
    code = run_demo(True, out, cache, 3, settings=settings, root=library, console=console)
    report = file.getvalue()
    assert code == 0, report
    assert "PASS" in report
    assert "filter_eps=None" in report
    assert sorted(path.name for path in out.glob("*.png")) == sorted(PICTURES)
    for name in (*PICTURES, "entropy.html"):
        assert (out / name).stat().st_size > 5_000
        assert name in report

    curves = rows(out / "loss_curves.csv")
    assert len(curves) == settings.steps
    assert float(curves[-1]["loss tokcore"]) < float(curves[0]["loss tokcore"])
    assert [row["loss"] for row in rows(out / "loss_cost.csv")] == ["tokcore", "eager", "eager upcast"]
    assert all(int(row["gradient_bytes"]) == 2 * 32 * (64 + 400) for row in rows(out / "loss_cost.csv"))
    assert len(rows(out / "filter_rate.csv")) == 4
    held_out = load_corpus(library).held_out
    tokens = rows(out / "entropy.csv")
    assert "".join(row["token"] for row in tokens) == held_out.text

    config = json.loads((cache / "quick" / "config.json").read_text())
    assert config["training"]["seed"] == 3
    state = load_file(cache / "quick" / "model.safetensors")
    assert {x.dtype for x in state.values() if x.dim() > 1} == {torch.bfloat16}
    inputs = load_file(cache / "quick" / "loss_inputs.safetensors")
    assert {name: tuple(x.shape) for name, x in inputs.items()} == {"e": (64, 32), "c": (400, 32), "targets": (64,)}
    model, tokenizer = load_checkpoint(cache / "quick")
    scored = score_document(model, tokenizer, held_out, settings.seq_len, settings.topk)
    logprobs = [float(row["logprob"]) for row in tokens]
    assert logprobs == scored.logprob.tolist(), "a loaded model scores bit for bit alike"


def test_disagreement_is_exit_code_1_and_memory_may_be_unknown(
    library: Path, settings: DemoSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> PeakMemory:
        raise WorkerError("exit status 1: no clear_refs")

    monkeypatch.setattr(pipeline, "judge_agreement", lambda *_: Agreement(0.5, 3.0, 0.001, 0.001))
    monkeypatch.setattr(costs, "measure_peak_memory", fail)
    file = io.StringIO()
    console = Console(file=file, width=200)
    small = replace(settings, steps=2)
    assert run_demo(False, tmp_path, tmp_path / "cache", 0, settings=small, root=library, console=console) == 1
    assert "FAIL" in file.getvalue()
    assert "not measured: exit status 1: no clear_refs" in file.getvalue()
    assert (tmp_path / "cache" / "full" / "config.json").is_file()


def test_missing_packages_are_named_with_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec

    def without(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in {"tokenizers", "matplotlib"} else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(ImportError, match=r"missing tokenizers, matplotlib; .*tokcore\[demo\]"):
        run_demo(True, tmp_path, None, 0)


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOKCORE_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("TOKCORE_CACHE")
    assert default_cache() == Path.home() / ".cache" / "tokcore" / "demo"


def test_no_checkpoint_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tokcore demo"):
        load_checkpoint(tmp_path)
