from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer

from tokcore.demo.act import ActContext
from tokcore.demo.acts import ACTS
from tokcore.demo.corpus import Corpus
from tokcore.demo.progress import Progress
from tokcore.demo.settings import DemoSettings
from tokcore.demo.token_trees import chance, play, speed
from tokcore.demo.token_trees.chance import chi_square
from tokcore.demo.tokenizer import encode_stream
from tokcore.demo.train import Trainee, sample_windows
from tokcore.speculative import NGram

TINY = play.TokenTreeSettings(
    prompts=2, prompt_tokens=12, new_tokens=24, rounds=1, draft_steps=3, draft_hidden=32, batches=2, batch=16
)
PICTURES = [f"token_trees_{stem}_{theme}.png" for stem in ("speed", "accepted", "step") for theme in ("light", "dark")]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def context(corpus: Corpus, tokenizer: Tokenizer, settings: DemoSettings, tmp_path: Path) -> ActContext:
    tokens = encode_stream(tokenizer, [document.text for document in corpus.documents])
    trainee = Trainee("tokcore", settings)
    generator = torch.Generator().manual_seed(0)
    for _ in range(settings.steps):
        trainee.train_step(sample_windows(tokens, settings, generator))
    progress = Progress(Console(file=io.StringIO(), width=150))
    return ActContext(trainee.model, tokenizer, corpus, tokens, settings, True, tmp_path, tmp_path, progress)


def printed(result_report: object) -> str:
    console = Console(file=io.StringIO(), width=150)
    for part in result_report:
        console.print(part)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_act(context: ActContext, tmp_path: Path) -> None:
    assert play.play in ACTS
    result = play.play(context, TINY)
    text = printed(result.report)
    assert result.passed, text
    assert text.count("PASS") == 3
    assert [path.name for path in result.pictures] == PICTURES
    assert all(path.stat().st_size > 5_000 for path in result.pictures)
    found = rows(tmp_path / "token_trees_speed.csv")
    assert {row["method"] for row in found} == {speed.PLAIN, *play.drafters(None)}  # type: ignore[arg-type]
    assert all(float(row["tokens_per_second"]) > 0 for row in found)
    nodes = rows(tmp_path / "token_trees_step.csv")
    assert nodes[0]["accepted"] == "1"
    accepted = {row["method"]: 0 for row in found}
    for row in rows(tmp_path / "token_trees_accepted.csv"):
        accepted[row["method"]] += (int(row["accepted"]) + 1) * int(row["steps"])
    assert accepted[speed.PLAIN] == TINY.prompts * TINY.new_tokens
    assert all(count >= TINY.prompts * TINY.new_tokens for count in accepted.values())


def test_a_difference_is_not_passed(context: ActContext, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = speed.generate

    def tampered(*arguments: object, **options: object) -> object:
        result = honest(*arguments, **options)  # type: ignore[arg-type]
        if options["drafter"] is not None:
            result.tokens[0][-1] += 1
        return result

    monkeypatch.setattr(speed, "generate", tampered)
    result = play.play(context, TINY)
    assert not result.passed
    assert "greedy output identical to plain decoding: FAIL" in printed(result.report)


def test_another_distribution_is_found(context: ActContext, monkeypatch: pytest.MonkeyPatch) -> None:
    # Drafted continuations sampled at another temperature, by other seeds.
    honest = chance.generate

    def tampered(*arguments: object, **options: object) -> object:
        if options["drafter"] is not None:
            options["temperature"] = 0.05
        return honest(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(chance, "generate", tampered)
    model = speed.DemoModel(context.model, 700)
    for rule, differing in (("coupled", True), ("target_only", False)):
        sampling = chance.Sampling("n-grams", NGram(4), rule, 1.0, 4, 64)
        found = chance.compare_samples(model, sampling, torch.arange(5), context.progress)
        assert not found.passed
        assert found.p_value < chance.FALSE_ALARM
        assert bool(found.same_seed_differing) == differing


def test_chi_square_of_equal_and_of_shifted_sets() -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(weights: list[float], count: int = 4000) -> list[tuple[int, ...]]:
        tokens = torch.multinomial(torch.tensor(weights), 3 * count, replacement=True, generator=generator)
        return [tuple(row) for row in tokens.reshape(count, 3).tolist()]

    weights = [0.5, 0.25, 0.1, 0.1, 0.04, 0.005, 0.005]
    p_values = [chi_square("x", draw(weights), draw(weights), 0).p_value for _ in range(40)]
    assert min(p_values) > 1e-4
    assert 0.2 < sum(p_values) / 40 < 0.8
    shifted = [0.40, 0.35, *weights[2:]]
    assert chi_square("x", draw(weights), draw(shifted), 0).p_value < chance.FALSE_ALARM
