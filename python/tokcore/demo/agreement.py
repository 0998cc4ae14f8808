"""Do two loss curves agree within bf16 rounding?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

BF16_UNIT_ROUNDOFF = 2.0**-8  # largest relative error of rounding to the 8 significant bits of bf16


@dataclass(frozen=True)
class Agreement:
    """The two parts of the criterion, each with what was measured and what is allowed.

    ``relative``: mean over steps of |L_tokcore - L_eager| / L_eager, at most the unit roundoff of bf16, 2^-8.
    ``difference``: mean of |L_tokcore - L_eager| (nats), at most ``allowed`` = 2 ``control`` + ``floor``. The control
    is the same distance between eager and eager with operands upcast to fp32, whose logits are not rounded to bf16: two
    roundings of one function, which training amplifies alike. The floor is the rounding of the plotted values
    themselves, the mean of T losses of which each is rounded to bf16: 2^-8 L / sqrt(T).
    """

    relative: float
    difference: float
    control: float
    floor: float

    @property
    def allowed(self) -> float:
        """Bound of ``difference``, in nats."""
        return 2.0 * self.control + self.floor

    @property
    def passed(self) -> bool:
        """False also when a loss was NaN or infinite."""
        return self.relative <= BF16_UNIT_ROUNDOFF and self.difference <= self.allowed < math.inf


def judge_agreement(
    tokcore: Sequence[float], eager: Sequence[float], control: Sequence[float], tokens_per_step: int
) -> Agreement:
    """Compare three loss curves of equal length, one value per step."""
    if not len(tokcore) == len(eager) == len(control) > 0:
        raise ValueError(f"expected three curves of one length, got {len(tokcore)}, {len(eager)}, {len(control)}")
    differences = [abs(a - b) for a, b in zip(tokcore, eager, strict=True)]
    return Agreement(
        relative=_mean([difference / loss for difference, loss in zip(differences, eager, strict=True)]),
        difference=_mean(differences),
        control=_mean([abs(a - b) for a, b in zip(control, eager, strict=True)]),
        floor=BF16_UNIT_ROUNDOFF * _mean(eager) / math.sqrt(tokens_per_step),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
