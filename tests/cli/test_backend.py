"""What can be said of the GPU's backend without a GPU: its decisions, on a stand-in for events and graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from toy import Invoke

from tokcore import _library
from tokcore.testing import cuda
from tokcore.testing.backend import find_backend


def test_the_cpu_is_timed_by_the_wall_clock() -> None:
    backend = find_backend("cpu")
    calls = [lambda: None]
    assert backend.tune(calls) == (calls, "wall clock")
    assert backend.seconds_of(calls[0]) >= 0.0
    assert backend.cache_bytes() > 0


class Replay:
    """Stands in for a captured graph."""

    def __init__(self, call: Callable[[], Any]) -> None:
        if call() == "host":
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.call = call


@pytest.mark.parametrize(
    ("seconds", "result", "timed"),
    [
        (2e-3, "", "events"),
        (5e-4, "", "graph replay"),
        (5e-4, "host", "events (no graph: operation not permitted when stream is capturing)"),
    ],
)
def test_short_calls_are_replayed_where_they_can_be(
    seconds: float, result: str, timed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "seconds_of", lambda call: seconds)
    monkeypatch.setattr(cuda, "Capture", Replay)
    calls = [lambda: result, lambda: result]
    tuned, how = find_backend("cuda").tune(calls)
    assert how == timed
    assert [call.call if isinstance(call, Replay) else call for call in tuned] == calls


def test_a_backend_that_cannot_run_here_says_why(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "available", {"tokcore_cpu"})
    monkeypatch.setitem(_library.loaded, "tokcore_cuda", "not loaded: no file")
    for command in ("bench", "verify"):
        done = invoke(command, "--op", "toy", "--backend", "cpu,cuda")
        expected = "tokcore: backend cuda cannot run here: the library tokcore_cuda is not loaded: no file\n"
        assert (done.exit_code, done.output) == (2, expected)
    monkeypatch.setattr(_library, "available", {"tokcore_cpu", "tokcore_cuda"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.missing() == "torch sees no GPU"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cuda.missing() is None
