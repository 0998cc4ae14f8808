"""The machine's peaks, measured in the same run as the rows they are compared with.

On a CPU by the library's own loops: ``torch.matmul`` is no measure of one, its bf16 product reaches a fraction of the
tile units' rate. On a GPU by torch's product and copy, which come near to what the chip can do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch

CPU_KINDS = {"amx_bf16": "FLOP/s", "amx_int8": "OP/s", "fma_fp32": "FLOP/s", "read": "B/s"}
CUDA_KINDS = {"matmul_bf16": "FLOP/s", "matmul_fp16": "FLOP/s", "matmul_fp32": "FLOP/s", "copy": "B/s"}
KINDS = {**CPU_KINDS, **CUDA_KINDS}  # kind -> unit

_ARITHMETIC = {  # by dtype, best first
    torch.bfloat16: ("matmul_bf16", "amx_bf16", "fma_fp32"),
    torch.float16: ("matmul_fp16", "fma_fp32"),
    torch.float32: ("matmul_fp32", "fma_fp32"),
    torch.int8: ("amx_int8",),
}
_BANDWIDTH = ("copy", "read")

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

    def measure(self, kinds: Iterable[str] = CPU_KINDS, seconds: float = 0.2, probe: Probe | None = None) -> None:
        """Measures again and keeps the better figure: a disturbed measurement can only be too low."""
        probe = probe or library_probe()
        if probe is None:
            return
        for kind in kinds:
            rate = probe(kind, seconds)
            if rate > 0.0:
                self.rates[kind] = max(rate, self.rates.get(kind, 0.0))

    def arithmetic(self, dtype: torch.dtype) -> tuple[str, float] | None:
        """Kind and rate of the units that a product of ``dtype`` may use here, such as tiles for bf16."""
        kinds = _ARITHMETIC.get(dtype, ("fma_fp32",))
        return next(((kind, self.rates[kind]) for kind in kinds if kind in self.rates), None)

    def bandwidth(self) -> tuple[str, float] | None:
        """Kind and rate of reading memory, or of copying it where that is what was measured."""
        return next(((kind, self.rates[kind]) for kind in _BANDWIDTH if kind in self.rates), None)
