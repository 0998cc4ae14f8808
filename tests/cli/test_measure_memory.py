from __future__ import annotations

import pytest
import torch
import toy

from tokcore.testing import memory
from tokcore.testing.table import Case
from tokcore.testing.worker import WorkerError

MIB = 1 << 20


def test_a_known_allocation_is_found() -> None:
    (case,) = toy.HUNGRY.cases
    (variant,) = toy.HUNGRY.variants
    found = memory.measure_variant("hungry", case, variant, threads=1, tables="toy:tables")
    assert found.results == MIB
    assert 62 * MIB <= found.extra <= 68 * MIB  # 64 MiB were touched and given back
    assert found.lower_bound == 0
    assert found.logits == 8 * 16 * 4


def test_what_the_process_held_before_does_not_count() -> None:
    held = torch.ones(32 * MIB, dtype=torch.uint8)
    freed = torch.ones(64 * MIB, dtype=torch.uint8)
    del freed  # a peak of the past
    found = memory.peak_of(lambda: torch.ones(16 * MIB, dtype=torch.uint8))
    assert held[0] == 1
    assert found.results == 16 * MIB
    assert 15 * MIB <= found.peak <= 24 * MIB


def test_the_lower_bound_is_the_gradients() -> None:
    case = toy.TABLE.cases[0]
    variant = toy.VARIANTS[-1]
    found = memory.measure_variant("toy", case, variant, threads=1, tables="toy:tables")
    assert found.lower_bound == found.results == (8 * 4 + 16 * 4) * 4


def test_shares() -> None:
    found = memory.PeakMemory(peak=150, results=100, lower_bound=100, logits=1000)
    assert found.extra == 50
    assert found.share_of_logits == 0.05
    assert found.times_lower_bound == 1.5
    assert memory.PeakMemory(1, 2).extra == 0
    assert memory.PeakMemory(1, 2).share_of_logits is None
    assert memory.PeakMemory(1, 2).times_lower_bound is None


def test_the_warm_up_is_smaller_and_never_larger() -> None:
    small = memory.smaller_case(toy.TABLE.cases[1])
    assert small.parameters == {"T": 8, "C": 4, "V": 1024, "dtype": torch.bfloat16}


def test_a_failing_process_tells_why() -> None:
    broken = next(variant for variant in toy.VARIANTS if variant.name == "broken")
    with pytest.raises(WorkerError, match=r"exit status 1: .*"):
        memory.measure_variant("toy", toy.TABLE.cases[0], broken, threads=1, tables="toy:tables")
    with pytest.raises(WorkerError, match="KeyError"):
        memory.measure_variant("unknown", toy.TABLE.cases[0], broken, threads=1, tables="toy:tables")


def test_logits_are_those_of_a_classifier_or_of_attention() -> None:
    sizes = {"B": 2, "H": 3, "M": 400, "N": 500}
    assert memory.logits_bytes(Case("classifier", {"T": 7, "V": 11, "dtype": torch.bfloat16})) == 7 * 11 * 2
    assert memory.logits_bytes(Case("attention", {**sizes, "dtype": torch.float32})) == 2 * 3 * 400 * 500 * 4
    assert memory.logits_bytes(Case("neither", {"T": 7, "M": 400, "dtype": torch.float32})) == 0
    assert memory.logits_bytes(Case("no dtype", sizes)) == 0
    assert memory.smaller_case(Case("attention", sizes)).parameters == {**sizes, "M": 256, "N": 256}
    assert memory.smaller_case(Case("grid", {**sizes, "grid": (4, 10, 10)})).parameters["M"] == 400
