"""Where a benchmark or a verification runs: what differs between a CPU and a GPU in preparing and timing a call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tokcore.testing import cuda
from tokcore.testing.buffers import last_level_cache_bytes
from tokcore.testing.peaks import CPU_KINDS, CUDA_KINDS, Probe, library_probe

Call = Callable[[], Any]


class Backend:
    """A CPU, timed by the wall clock."""

    name = "cpu"
    case_tag = "bench"  # of the cases timed by default
    min_rounds = 5
    copy_limit_bytes = 512 << 20  # of all copies of a case's inputs
    reference_limit_bytes = 1 << 30  # of the largest tensor of the fp64 reference, which may hold a few such
    peak_kinds: Sequence[str] = tuple(CPU_KINDS)
    peak_seconds = 0.2  # of measuring each, before and after every case

    def cache_bytes(self) -> int:
        """The cache that inputs should not be found in."""
        return last_level_cache_bytes()

    def seconds_of(self, call: Call) -> float:
        """How long one call takes, giving back its result included."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start

    def tune(self, calls: Sequence[Call]) -> tuple[Sequence[Call], str]:
        """``calls`` in the form in which they are timed, and what that is called."""
        return calls, "wall clock"

    def probe(self) -> Probe | None:
        """What measures the machine's peaks."""
        return library_probe()


class CudaBackend(Backend):
    """A GPU, timed by events; what takes less than a millisecond is replayed from a graph, without launch gaps."""

    name = "cuda"
    case_tag = "bench-cuda"
    min_rounds = 100
    copy_limit_bytes = 8 << 30
    reference_limit_bytes = 20 << 30
    peak_kinds = tuple(CUDA_KINDS)
    short_seconds = 1e-3
    peak_seconds = 0.05

    def cache_bytes(self) -> int:
        """The L2 cache."""
        return cuda.l2_bytes()

    def seconds_of(self, call: Call) -> float:
        """Between two events on the current stream."""
        return cuda.seconds_of(call)

    def tune(self, calls: Sequence[Call]) -> tuple[Sequence[Call], str]:
        """Graphs where the first call is short and every call can be captured."""
        if cuda.seconds_of(calls[0]) >= self.short_seconds:
            return calls, "events"
        try:
            return [cuda.Capture(call) for call in calls], "graph replay"
        except RuntimeError as error:
            return calls, f"events (no graph: {str(error).splitlines()[0]})"

    def probe(self) -> Probe | None:
        """torch's product and copy: on a GPU they are near what the machine can do."""
        return cuda.probe


def find_backend(name: str) -> Backend:
    """The backend called ``name``: ``"cpu"`` or ``"cuda"``."""
    return {"cpu": Backend, "cuda": CudaBackend}[name]()
