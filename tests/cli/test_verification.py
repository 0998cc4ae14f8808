from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import toy

from tokcore import _library
from tokcore.testing import verification
from tokcore.testing.verification import CUDA, attempt, verify_at
from tokcore.testing.worker import WorkerError, run_worker

SOURCE = "toy:tables"


def test_after_an_error_of_the_gpu_a_new_process_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[list[str]] = []

    def worker(module: str, request: Any, environment: Any, seconds: Any) -> Iterator[dict[str, Any]]:
        requests.append(request["cases"])
        assert (environment, request["place"]) == ({}, CUDA)
        yield {"place": CUDA}
        for name in request["cases"]:
            bad = name == "b"
            yield {"case": name, "ok": not bad, "comparisons": [], **({"ends": True} if bad else {})}
            if bad:
                return

    monkeypatch.setattr(verification, "run_worker", worker)
    results = verify_at("toy", ["a", "b", "c", "d"], CUDA, 0)
    assert requests == [["a", "b", "c", "d"], ["c", "d"]]
    assert [(result["case"], result["ok"]) for result in results] == [
        ("a", True), ("b", False), ("c", True), ("d", True),
    ]  # fmt: skip
    assert all(result["isa"] == CUDA and "ends" not in result for result in results)


def test_an_error_that_breaks_the_gpu_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    case = toy.TROUBLED.case("raises")
    monkeypatch.setattr(toy.OpTable, "make_inputs", None, raising=False)
    monkeypatch.setattr(verification, "gpu_works", lambda: False)
    assert attempt(toy.TROUBLED, case, CUDA, 0)["ends"] is True
    monkeypatch.setattr(verification, "gpu_works", lambda: True)
    assert "ends" not in attempt(toy.TROUBLED, case, CUDA, 0)
    assert "ends" not in attempt(toy.TROUBLED, case, "cpu", 0)


def test_the_wrong_place_fails_every_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "run_worker", lambda *_: iter([{"place": "baseline"}]))
    results = verify_at("toy", ["a", "b"], CUDA, 0)
    assert [result["failure"] for result in results] == ["the library runs at baseline although cuda was asked for"] * 2


def test_what_no_time_is_left_for_is_left_out() -> None:
    place = _library.cpu_isa()
    assert verify_at("toy", ["small,fp32"], place, 0, tables=SOURCE, seconds=0.0) == []
    results = verify_at("toy", ["small,fp32"], place, 0, tables=SOURCE, seconds=60.0)
    assert [result["ok"] for result in results] == [True]


def test_a_worker_that_hangs_is_stopped() -> None:
    with pytest.raises(WorkerError, match="killed by signal 9"):
        list(run_worker("toy_that_hangs", {}, seconds=1.0))
