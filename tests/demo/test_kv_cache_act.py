from __future__ import annotations

import csv
import io
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tokcore import linear_logprobs
from tokcore.demo import costs, pipeline, run_demo
from tokcore.demo.act import ActContext, ActResult
from tokcore.demo.acts import ACTS
from tokcore.demo.kv_cache import play as act
from tokcore.demo.kv_cache.perplexity import Quality, perplexity, text_windows
from tokcore.demo.kv_cache.report import Findings, Verdict, equal_tokens, judge
from tokcore.demo.kv_cache.retrieval import (
    OUTLIER_SCHEMES,
    PER_TENSOR,
    PerTensorInt4Cache,
    Retrieved,
    memory_schemes,
    plant_outlier,
)
from tokcore.demo.kv_cache.retrieval_task import (
    START,
    RetrievalSettings,
    RetrievalTraining,
    make_questions,
    new_model,
    train_retrieval,
)
from tokcore.demo.kv_cache.schemes import BF16, INT4_ROTATED, MIXED, Calibration, cached, probe_rows, take_prompt
from tokcore.demo.model import Transformer
from tokcore.demo.progress import Progress
from tokcore.demo.settings import DemoSettings
from tokcore.testing.memory import PeakMemory
from tokcore.testing.worker import WorkerError

TINY_TASK = RetrievalSettings(
    num_keys=24, num_values=16, num_fillers=7, hidden_size=64, stages=((4, 0), (8, 2), (24, 8)), tokens_per_step=384
)
TINY = act.KVCacheSettings(
    windows=2,
    memory_capacity=256,
    generated=5,
    lengths=(64, 128),
    rounds=2,
    retrieval=TINY_TASK,
    prompts=6,
    questions=6,
)
PICTURES = [f"kv_{stem}_{theme}.png" for stem in ("memory", "latency", "outliers") for theme in ("light", "dark")]


@pytest.fixture(autouse=True)
def no_peak_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first act's memory takes half a minute to measure, and is no matter here."""

    def refuse(*arguments: object) -> PeakMemory:
        raise WorkerError("not asked for here")

    monkeypatch.setattr(costs, "measure_peak_memory", refuse)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def quiet() -> Progress:
    return Progress(Console(file=io.StringIO()))


def test_the_act_in_the_demo(
    library: Path, settings: DemoSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From text to report; with six pages of memory and a task of eight lines only the verdicts' wording is judged."""
    assert act.play in ACTS
    monkeypatch.setattr(pipeline, "ACTS", (partial(act.play, settings=TINY),))
    file = io.StringIO()
    console = Console(file=file, width=200)
    run_demo(True, tmp_path, tmp_path / "cache", 0, settings=settings, root=library, console=console)
    report = file.getvalue()
    for name in PICTURES:
        assert (tmp_path / name).stat().st_size > 5_000
        assert name in report
    quality = rows(tmp_path / "kv_quality.csv")
    assert [row["cache"] for row in quality][:4] == ["bf16", "int8", "int4", "int4 + rotation"]
    bf16, int8 = quality[:2]
    assert abs(float(int8["perplexity"]) / float(bf16["perplexity"]) - 1) < 0.01
    assert float(int8["bytes_per_token"]) < 0.8 * float(bf16["bytes_per_token"])
    assert all(len(row["tokens"].split()) == TINY.generated for row in quality)
    assert {int(row["length"]) for row in rows(tmp_path / "kv_latency.csv")} == {64, 128}
    assert len(rows(tmp_path / "kv_retrieval.csv")) == len(memory_schemes(64)) + 1 + len(OUTLIER_SCHEMES)
    assert "PASS perplexity over int4 + rotation within 1 % of bf16" in report
    assert "Needles found" in report


def test_an_act_that_fails_is_exit_code_1(
    library: Path, settings: DemoSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ActContext] = []

    def play(passed: bool, context: ActContext) -> ActResult:
        seen.append(context)
        return ActResult(passed, [f"act says {passed}"], [], [])

    monkeypatch.setattr(pipeline, "ACTS", (partial(play, False), partial(play, True)))
    file = io.StringIO()
    console = Console(file=file, width=200)
    small = replace(settings, steps=2)
    assert run_demo(True, tmp_path, tmp_path / "cache", 0, settings=small, root=library, console=console) == 1
    report = file.getvalue()
    assert "PASS loss curves" in report.replace("[bold green]", ""), "the first act is not what failed"
    assert "act says False" in report
    assert "act says True" in report, "an act that fails does not keep the next from being played"
    assert [context.out for context in seen] == [tmp_path, tmp_path]


def test_claims_can_fail() -> None:
    training = RetrievalTraining(new_model(TINY_TASK, 0), 1, 1.0, 1.0, True)

    def findings(int4: float, retained: float, evicted: float, per_tensor: float, balanced: float) -> Findings:
        quality = [Quality("bf16", 100.0, 4.0), Quality(INT4_ROTATED.name, int4, 1.0), Quality(MIXED.name, 100.2, 1.0)]
        kept = {scheme.name: 1.0 for scheme in memory_schemes(64)}
        kept |= {"retain that half in int4": retained, "evict the less important half": evicted}
        outliers = {scheme.name: 1.0 for scheme in OUTLIER_SCHEMES}
        outliers |= {PER_TENSOR: per_tensor, "int4 by token, balanced": balanced}
        lists = [[Retrieved(name, share, 1.0) for name, share in found.items()] for found in (kept, outliers)]
        return Findings(quality, [], "", [], training, TINY_TASK, *lists)

    def failed(*values: float) -> list[Verdict]:
        return [verdict for verdict in judge(findings(*values)) if not verdict.passed]

    good = (100.9, 0.98, 0.5, 0.1, 0.98)
    assert failed(*good) == []
    for index, bad in enumerate((101.1, 0.9, 0.95, 0.7, 0.5)):
        assert len(failed(*good[:index], bad, *good[index + 1 :])) == 1


def test_questions_ask_for_what_was_planted() -> None:
    questions = make_questions(TINY_TASK, 5, planted=8, filler=3, asked=4, generator=torch.Generator().manual_seed(1))
    assert questions.prompt.shape == (5, 1 + 16 + 3)
    assert questions.tokens.shape == (5, 24)
    assert (questions.prompt[:, 0] == START).all()
    for prompt, keys, values in zip(questions.prompt, questions.keys, questions.values, strict=True):
        lines = {int(key): int(value) for value, key in prompt[1:17].view(8, 2)}
        assert len(lines) == 8, "every key once"
        assert [lines[int(key)] for key in keys] == values.tolist()
    assert int(questions.tokens.max()) < TINY_TASK.model.vocab_size


def test_the_task_is_learnt_and_remembered_in_four_bits() -> None:
    training = train_retrieval(TINY_TASK, seed=0, progress=quiet())
    assert training.finished
    training.model.compute_dtype = torch.bfloat16
    questions = make_questions(TINY_TASK, 20, 24, 8, 8, torch.Generator().manual_seed(9))
    calibration = Calibration(training.model, questions.tokens[:4])
    changes = {"page_size": 16, "residual": 0, "sinks": 1}
    accuracy = {}
    for scheme in OUTLIER_SCHEMES[:2]:
        run = cached(training.model, scheme, 20, 80, calibration, **changes)
        take_prompt(run, scheme, questions.prompt, seed=0)
        answers = run.logits(run(questions.keys)).argmax(-1)
        accuracy[scheme.name] = (answers == questions.values).float().mean().item()
    assert accuracy["bf16"] > 0.95
    assert accuracy["int4 by token"] > 0.9


def test_an_evicted_tier_is_not_seen() -> None:
    model = new_model(TINY_TASK, 0)
    model.compute_dtype = torch.bfloat16
    prompt = make_questions(TINY_TASK, 2, 24, 30, 4, torch.Generator().manual_seed(0)).prompt
    calibration = Calibration(model, prompt)
    by_name = {scheme.name: scheme for scheme in memory_schemes(96)}
    counts = {}
    for name in ("evict the less important half", "retain that half in int2"):
        run = cached(model, by_name[name], 2, 96, calibration, page_size=16, residual=16)
        take_prompt(run, by_name[name], prompt, seed=0)
        low = run.cache.layer(1).low
        assert low is not None
        counts[name] = low.page_counts.tolist()
    assert counts["evict the less important half"] == [0, 0]
    assert min(counts["retain that half in int2"]) > 0


def test_a_planted_outlier_changes_nothing_but_the_cache() -> None:
    model = new_model(TINY_TASK, 0)
    changed = plant_outlier(model)
    questions = make_questions(TINY_TASK, 2, 8, 4, 4, torch.Generator().manual_seed(0))
    torch.testing.assert_close(changed(questions.tokens), model(questions.tokens), rtol=1e-4, atol=1e-4)
    largest = [m.blocks[0].attention.key.weight.abs().max() for m in (model, changed)]
    assert largest[1] > 50 * largest[0]


def test_per_tensor_baseline_has_fifteen_levels() -> None:
    cache = PerTensorInt4Cache(1, 1, 1, 32, 64, high="bf16", low=None)
    x = torch.randn(1, 10, 1, 32, generator=torch.Generator().manual_seed(0)).bfloat16()
    cache.append(0, x, x)
    stored = cache.layer(0).window_k[0, 0, 4:10]
    assert 8 < stored.unique().numel() <= 15
    assert (stored - x[0, 4:, 0]).abs().max() <= x.abs().max() / 7 * 0.51


def test_perplexity_of_a_bf16_cache_is_that_of_the_model(library: Path, settings: DemoSettings) -> None:

    model = Transformer(settings.model, seed=0)
    stream = torch.randint(settings.model.vocab_size, (130,), generator=torch.Generator().manual_seed(0))
    windows = text_windows(stream, 32, 3)
    assert windows.shape == (3, 33)
    assert torch.equal(windows[1], stream[32:65])
    found = perplexity(model, BF16, windows, Calibration(model, windows), {"page_size": 16, "residual": 8})
    with torch.no_grad():
        hidden = model(windows[:, :-1])[:, 15:].flatten(0, 1)
    scored = linear_logprobs(hidden, model.classifier(), windows[:, 16:].flatten())
    assert found == pytest.approx(scored.logprob.double().mean().neg().exp().item(), rel=5e-3)
    with pytest.raises(ValueError, match="at least 201 held-out tokens, got 130"):
        text_windows(stream, 200, 3)


def test_small_parts() -> None:
    assert equal_tokens([1, 2, 3], [1, 2, 4]) == 2
    assert equal_tokens([1, 2], [1, 2]) == 2
    probes = probe_rows(100, seed=3)
    assert probes.tolist() == sorted(set(probes.tolist()))
    assert probes.numel() == 16
    assert probes[-8:].tolist() == list(range(92, 100))
