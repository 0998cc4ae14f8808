"""Peak memory of a closure over what was there before it and what it returns.

On a CPU it is read from the process's own peak RSS, on a GPU from torch's allocator.

The figure includes everything that the call touches: scratch memory of kernels, of the allocator and of libraries. So
that nothing cached by earlier work hides a part of it, :func:`measure_variant` runs it in a fresh process, in which
only a much smaller case has run before (which loads code pages and starts the threads).
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tokcore.testing import cuda
from tokcore.testing.buffers import storage_bytes, tensors_in
from tokcore.testing.table import Case, Inputs, Variant
from tokcore.testing.worker import TABLES, answer, load_tables, read_request, run_worker

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_WARM_UP = {"T": 64, "V": 1024, "M": 256, "N": 256}  # parameters of the smaller case, where the case has more
_LOGITS = (("T", "V"), ("B", "H", "M", "N"))  # of a classifier, of attention


@dataclass(frozen=True)
class PeakMemory:
    """Bytes of one call. ``lower_bound`` and ``logits`` are 0 where they mean nothing."""

    peak: int  # beyond what the process held before the call, results included
    results: int  # the tensors that the call returned
    lower_bound: int = 0  # the gradients alone: no backward can need less
    logits: int = 0  # T·V elements of the case's dtype, or B·H·M·N of attention

    @property
    def extra(self) -> int:
        """Bytes beyond inputs and results."""
        return max(0, self.peak - self.results)

    @property
    def share_of_logits(self) -> float | None:
        """``extra`` as a fraction of the logits' bytes."""
        return self.extra / self.logits if self.logits else None

    @property
    def times_lower_bound(self) -> float | None:
        """``peak`` as a multiple of the gradients' bytes."""
        return self.peak / self.lower_bound if self.lower_bound else None


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) << 10
    raise OSError(f"{_STATUS} has no field {field}")


def peak_of(call: Callable[[], Any]) -> PeakMemory:
    """Runs ``call`` once and returns its peak memory and the bytes of the tensors it returned.

    Raises OSError where the kernel does not let a process reset its peak (needs Linux's /proc/self/clear_refs).
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # memory kept by the allocator would hide as much of the peak
    _CLEAR_REFS.write_text("5")
    before = _status_bytes("VmRSS")
    result = call()
    peak = _status_bytes("VmHWM")
    return PeakMemory(max(0, peak - before), storage_bytes(result))


def smaller_case(case: Case) -> Case:
    """The case with few tokens and a small vocabulary; tokens of a grid stay as many as it has."""
    small = {
        name: min(value, case.parameters[name])
        for name, value in _WARM_UP.items()
        if isinstance(case.parameters.get(name), int) and "grid" not in case.parameters
    }
    return dataclasses.replace(case, parameters={**case.parameters, **small})


def gradient_bytes(inputs: Inputs) -> int:
    """Bytes of one gradient for every input that requires one."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(inputs) if tensor.requires_grad)


def logits_bytes(case: Case) -> int:
    """Bytes of a [T, V] tensor in the case's dtype, or of a [B, H, M, N] one; 0 for a case without these or a dtype."""
    dtype = case.parameters.get("dtype")
    for names in _LOGITS:
        sizes = [case.parameters.get(name) for name in names]
        if isinstance(dtype, torch.dtype) and all(isinstance(size, int) for size in sizes):
            return math.prod(size for size in sizes if isinstance(size, int)) * dtype.itemsize
    return 0


def measure_variant(
    op: str, case: Case, variant: Variant, *, threads: int, tables: str = TABLES, device: str = "cpu"
) -> PeakMemory:
    """Measures one variant on one case in a fresh process. Raises WorkerError when that fails."""
    request = {
        "tables": tables,
        "op": op,
        "case": case.name,
        "variant": variant.name,
        "measure": variant.measure,
        "threads": threads,
        "device": device,
    }
    (fields,) = run_worker("tokcore.testing.memory", request)
    return PeakMemory(**fields)


def _work() -> None:
    request = read_request()
    torch.set_num_threads(request["threads"])
    table = load_tables(request["tables"])[request["op"]]
    case = table.case(request["case"])
    wanted = (request["variant"], request["measure"])
    (variant,) = [variant for variant in table.variants if (variant.name, variant.measure) == wanted]
    small, device = smaller_case(case), request["device"]
    variant.prepare(small, table.make_inputs(small, device, 0))()
    inputs = table.make_inputs(case, device, 0)
    call = variant.prepare(case, inputs)
    memory = PeakMemory(*cuda.peak_bytes_of(call)) if device == "cuda" else peak_of(call)
    lower_bound = gradient_bytes(inputs) if variant.measure == "forward+backward" else 0
    answer(peak=memory.peak, results=memory.results, lower_bound=lower_bound, logits=logits_bytes(case))


if __name__ == "__main__":
    _work()
