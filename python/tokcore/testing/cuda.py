"""Timing, capture and peaks on a GPU. Work there is asynchronous: a host clock would time its start, not its end."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokcore import _library
from tokcore.testing.buffers import storage_bytes

_MATRIX = 8192  # rows and columns of the product that measures the tensor cores
_COPY_BYTES = 2 << 30
_DTYPES = {"matmul_bf16": torch.bfloat16, "matmul_fp16": torch.float16, "matmul_fp32": torch.float32}


def missing() -> str | None:
    """Why nothing of tokcore can run on a GPU here, or None."""
    if "cuda" not in _library.devices():
        return f"the library tokcore_cuda is {_library.loaded['tokcore_cuda']}"
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    return None


def device_name() -> str:
    """The name of the current GPU."""
    return torch.cuda.get_device_name()


def l2_bytes() -> int:
    """Size of the current GPU's second-level cache."""
    return int(torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size)


def seconds_of(call: Callable[[], Any]) -> float:
    """What the GPU needs for ``call``, from events around it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


class Capture:
    """``call`` as a CUDA graph; calling it replays the graph. ``result`` holds what ``call`` returned, rewritten by
    each replay."""

    def __init__(self, call: Callable[[], Any]) -> None:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # what happens in a first call only must not be captured
            call()
        torch.cuda.current_stream().wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.result = call()

    def __call__(self) -> Any:
        """Replays the graph on the current stream."""
        self.graph.replay()
        return self.result


def peak_bytes_of(call: Callable[[], Any]) -> tuple[int, int]:
    """The most that ``call`` took from torch's allocator beyond what was in use before, and the bytes it returned."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before, storage_bytes(result)


def probe(kind: str, seconds: float) -> float:
    """The rate of torch's own product (``"matmul_bf16"``, … in FLOP/s) or copy (``"copy"``: bytes read and written)."""
    call, work = _copy() if kind == "copy" else _product(_DTYPES[kind])
    call()
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < 3 or time.perf_counter() < end:
        taken.append(seconds_of(call))
    return work / statistics.median(taken)


def _product(dtype: torch.dtype) -> tuple[Callable[[], Tensor], float]:
    size = _MATRIX // 2 if dtype == torch.float32 else _MATRIX
    a, b = (torch.randn(size, size, device="cuda").to(dtype) for _ in range(2))  # zeros would run faster than data does
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out), 2.0 * size**3


def _copy() -> tuple[Callable[[], Tensor], float]:
    source = torch.randint(256, (_COPY_BYTES,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2.0 * _COPY_BYTES
