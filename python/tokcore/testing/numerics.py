"""The error rule: against fp64, a kernel errs at most twice as much as PyTorch does in the same dtype, plus a floor.

Errors are taken per output, as the largest and as the root mean square of |output - reference| over the elements where
the reference is finite. The floor is what representing and summing in fp32 may cost where PyTorch happens to be exact:
4·2^-23·max(1, s), with s the largest (the root mean square) of the reference, plus, for outputs in bfloat16 or float16,
half a unit in the last place of s. NaN and infinities must stand where the reference has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

FACTOR = 2.0
FP32_UNITS = 4.0


@dataclass(frozen=True)
class Comparison:
    """One output of a kernel under one norm."""

    name: str  # "grad_e", "grad_e (rms)"
    error: float
    allowed: float

    @property
    def ok(self) -> bool:
        """Whether the error is within what is allowed; a NaN is not."""
        return self.error <= self.allowed


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt()) if x.numel() else 0.0


NORMS = {"{}": _largest, "{} (rms)": _rms}


def floor(dtype: torch.dtype, scale: float) -> float:
    """What is allowed where PyTorch is exact, for an output of ``dtype`` and values of size ``scale``."""
    rounding = 0.0 if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps / 2 * scale
    return FP32_UNITS * torch.finfo(torch.float32).eps * max(1.0, scale) + rounding


def same_nonfinite(output: Tensor, reference: Tensor) -> bool:
    """Whether NaN, inf and -inf stand at the same places."""
    finite = output.isfinite()
    if not torch.equal(finite, reference.isfinite()):
        return False
    return torch.equal(torch.nan_to_num(output[~finite].double()), torch.nan_to_num(reference[~finite].double()))


def compare_output(name: str, output: Tensor, composition: Tensor, reference: Tensor) -> list[Comparison]:
    """The comparisons of one output. A wrong shape or misplaced NaN gives an infinite error."""
    failed = [Comparison(name, float("inf"), 0.0)]
    if output.shape != reference.shape:
        return failed
    if not reference.is_floating_point():
        return [Comparison(name, float((output != reference).sum()), 0.0)]
    output, composition, reference = output.detach(), composition.detach(), reference.detach().double()
    if not same_nonfinite(output, reference):
        return failed
    finite = reference.isfinite()
    expected = reference[finite]
    mine = output.double()[finite] - expected
    theirs = torch.nan_to_num(composition.double()[finite] - expected, nan=0.0, posinf=0.0, neginf=0.0)
    return [
        Comparison(pattern.format(name), norm(mine), FACTOR * norm(theirs) + floor(output.dtype, norm(expected)))
        for pattern, norm in NORMS.items()
    ]


def compare(
    outputs: Mapping[str, Tensor], composition: Mapping[str, Tensor], reference: Mapping[str, Tensor]
) -> list[Comparison]:
    """Holds every output of the kernel against the rule; an output that the reference lacks, or the reverse, fails."""
    comparisons: list[Comparison] = []
    for name in dict.fromkeys([*reference, *outputs]):
        if name in outputs and name in reference and name in composition:
            comparisons += compare_output(name, outputs[name], composition[name], reference[name])
        else:
            comparisons.append(Comparison(f"{name} (missing)", float("inf"), 0.0))
    return comparisons


def failures(comparisons: list[Comparison]) -> str:
    """One line per comparison that failed; empty if none did."""
    return "\n".join(f"{c.name}: error {c.error:.3e}, allowed {c.allowed:.3e}" for c in comparisons if not c.ok)
