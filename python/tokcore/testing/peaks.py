"""The machine's peaks, measured by the library's own loops in the same run as the rows they are compared with.

``torch.matmul`` is no measure of a machine: its bf16 product reaches a fraction of the tile units' rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

KINDS = {
    "amx_bf16": "FLOP/s",
    "amx_int8": "OP/s",
    "fma_fp32": "FLOP/s",
    "read": "B/s",
}

Probe = Callable[[str, float], float]


def library_probe() -> Probe | None:
    """``torch.ops.tokcore.measure_peak`` when the loaded library has it."""
    if not hasattr(torch.ops.tokcore, "measure_peak"):
        return None

    def probe(kind: str, seconds: float) -> float:
        return float(torch.ops.tokcore.measure_peak(kind, seconds))

    return probe


@dataclass
class Peaks:
    """The best rate seen so far of every kind; a kind that the machine lacks, or that nobody measured, is absent."""

    rates: dict[str, float] = field(default_factory=dict)

    def measure(self, kinds: Iterable[str] = KINDS, seconds: float = 0.2, probe: Probe | None = None) -> None:
        """Measures again and keeps the better figure: a disturbed measurement can only be too low."""
        probe = probe or library_probe()
        if probe is None:
            return
        for kind in kinds:
            rate = probe(kind, seconds)
            if rate > 0.0:
                self.rates[kind] = max(rate, self.rates.get(kind, 0.0))

    def arithmetic(self, dtype: torch.dtype) -> tuple[str, float] | None:
        """Kind and rate of the units that a product of ``dtype`` may use here: tiles for bf16, else fp32 FMA."""
        kinds = {torch.bfloat16: ("amx_bf16", "fma_fp32"), torch.int8: ("amx_int8",)}.get(dtype, ("fma_fp32",))
        return next(((kind, self.rates[kind]) for kind in kinds if kind in self.rates), None)

    def bandwidth(self) -> tuple[str, float] | None:
        """Kind and rate of reading memory."""
        return ("read", self.rates["read"]) if "read" in self.rates else None
