from __future__ import annotations

import math

import pytest

from tokcore.demo.agreement import judge_agreement

EAGER = [10.0 - 0.05 * step for step in range(100)]


def shifted(amount: float) -> list[float]:
    return [loss + (-1) ** step * amount for step, loss in enumerate(EAGER)]


def test_numbers() -> None:
    result = judge_agreement(shifted(0.002), EAGER, shifted(0.0015), tokens_per_step=1024)
    assert result.difference == pytest.approx(0.002)
    assert result.control == pytest.approx(0.0015)
    assert result.floor == pytest.approx(sum(EAGER) / 100 / 256 / 32)
    assert result.allowed == pytest.approx(0.003 + result.floor)
    assert result.relative == pytest.approx(sum(0.002 / loss for loss in EAGER) / 100)
    assert result.passed


@pytest.mark.parametrize(
    ("difference", "control", "passed"),
    [
        (0.0, 0.0, True),
        (0.003, 0.0015, True),
        (0.006, 0.0015, False),  # twice as far as two roundings of eager
        (0.1, 0.1, False),  # as far as the control, but both have lost touch with eager
    ],
)
def test_verdict(difference: float, control: float, passed: bool) -> None:
    assert judge_agreement(shifted(difference), EAGER, shifted(control), 1024).passed is passed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_loss_fails(bad: float) -> None:
    broken = [*EAGER[:-1], bad]
    assert not judge_agreement(broken, EAGER, EAGER, 1024).passed
    assert not judge_agreement(EAGER, broken, EAGER, 1024).passed
    assert not judge_agreement(EAGER, EAGER, broken, 1024).passed


def test_curves_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="99"):
        judge_agreement(EAGER[1:], EAGER, EAGER, 1024)
    with pytest.raises(ValueError, match="one length"):
        judge_agreement([], [], [], 1024)
