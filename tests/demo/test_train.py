from __future__ import annotations

import io

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from tokcore.demo.losses import LOSSES
from tokcore.demo.model import Transformer
from tokcore.demo.probe import gradient_errors, relative_error
from tokcore.demo.progress import Progress
from tokcore.demo.settings import DemoSettings
from tokcore.demo.train import Trainee, learning_rate, sample_windows, train_side_by_side


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randint(40, (600,), generator=torch.Generator().manual_seed(1))


def quiet() -> Progress:
    return Progress(Console(file=io.StringIO()))


def test_losses_are_one_function() -> None:
    torch.manual_seed(0)
    e, c, targets = torch.randn(33, 16), torch.randn(70, 16), torch.randint(70, (33,))
    expected = F.cross_entropy(e @ c.T, targets)
    for loss in LOSSES.values():
        torch.testing.assert_close(loss(e, c, targets), expected, rtol=1e-5, atol=1e-5)


def test_a_step_has_the_gradients_of_plain_backpropagation(settings: DemoSettings, tokens: torch.Tensor) -> None:
    windows = sample_windows(tokens, settings, torch.Generator().manual_seed(0))
    trainee = Trainee("eager", settings)
    plain = Transformer(settings.model, seed=settings.seed)
    hidden = plain(windows[:, :-1]).flatten(0, 1)
    LOSSES["eager"](hidden, plain.classifier(), windows[:, 1:].flatten()).backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), settings.grad_clip)
    trainee.train_step(windows)
    for ours, expected in zip(trainee.model.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert expected.grad is not None
        assert torch.equal(ours.grad, expected.grad)
        assert not torch.equal(ours, expected), "the optimizer has moved every parameter"


def test_training_is_repeatable_and_learns(settings: DemoSettings, tokens: torch.Tensor) -> None:
    first, second = (train_side_by_side(tokens, settings, quiet()) for _ in range(2))
    for name, trainee in first.trainees.items():
        assert trainee.losses == second.trainees[name].losses
        assert len(trainee.losses) == settings.steps
        assert trainee.losses[-1] < trainee.losses[0] - 0.2
    assert [probe.step for probe in first.probes] == [0, 5, 10, 11]
    assert all(0.0 <= probe.filter_rate <= 1.0 for probe in first.probes)
    assert first.trainees["tokcore"].losses != first.trainees["eager"].losses, "rounding differs, so they are two runs"


def test_windows_are_pieces_of_the_stream(settings: DemoSettings) -> None:
    stream = torch.arange(100)
    windows = sample_windows(stream, settings, torch.Generator().manual_seed(0))
    assert windows.shape == (2, 33)
    assert torch.equal(windows - windows[:, :1], torch.arange(33).expand(2, 33))
    with pytest.raises(ValueError, match="at least 33"):
        sample_windows(stream[:32], settings, torch.Generator())


def test_learning_rate_rises_and_falls(settings: DemoSettings) -> None:
    rates = [learning_rate(step, settings) for step in range(settings.steps + 1)]
    assert rates[:4] == pytest.approx([settings.learning_rate * k / 4 for k in (1, 2, 3, 4)])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(settings.learning_rate / 10)


def test_exact_gradients_are_as_close_to_fp32_as_eager_ones() -> None:
    torch.manual_seed(0)
    e, c = torch.randn(96, 64).bfloat16(), (torch.randn(512, 64) * 0.1).bfloat16()
    errors = {error.name: error for error in gradient_errors(e, c, torch.randint(512, (96,)))}
    assert set(errors) == {*LOSSES, "tokcore filtered"}
    for name in ("grad_e", "grad_c"):
        assert getattr(errors["tokcore"], name) <= 2 * getattr(errors["eager"], name)
    assert errors["tokcore filtered"].grad_e >= errors["tokcore"].grad_e


def test_relative_error() -> None:
    assert relative_error(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1.0])) == 1.0
    assert relative_error(torch.zeros(2), torch.zeros(2)) == 0.0
    assert relative_error(torch.ones(2), torch.zeros(2)) == float("inf")


def test_progress_without_a_terminal_writes_lines() -> None:
    file = io.StringIO()
    with Progress(Console(file=file, width=100)).stage("counting", 3) as stage:
        for count in range(3):
            stage.advance(f"note {count}")
    text = file.getvalue()
    assert "counting: 1/3  note 0" in text
    assert "counting: 3/3  note 2" in text
    assert "counting: done in" in text


def test_progress_on_a_terminal_draws_a_bar() -> None:
    file = io.StringIO()
    with Progress(Console(file=file, width=120, force_terminal=True)).stage("counting", 3) as stage:
        for _ in range(3):
            stage.advance("a note")
    assert "3/3" in file.getvalue()
    assert "a note" in file.getvalue()
