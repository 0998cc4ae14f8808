"""``measure_peak``: the denominators of the benchmarks' "of peak"."""

from __future__ import annotations

import pytest
import torch

import tokcore  # noqa: F401  (loads the operators)


@pytest.mark.parametrize("kind", ["fma_fp32", "read"])
def test_every_machine_has_these(kind: str) -> None:
    assert torch.ops.tokcore.measure_peak(kind, 0.01) > 0.0


@pytest.mark.parametrize("kind", ["amx_bf16", "amx_int8"])
def test_tiles_are_measured_where_they_are(kind: str) -> None:
    has_tiles = torch.ops.tokcore.cpu_isa() == "amx"
    assert (torch.ops.tokcore.measure_peak(kind, 0.01) > 0.0) == has_tiles


def test_bad_arguments() -> None:
    with pytest.raises(RuntimeError, match=r"argument 'kind': expected one of fma_fp32, .*, got gold"):
        torch.ops.tokcore.measure_peak("gold", 0.01)
    with pytest.raises(RuntimeError, match=r"argument 'seconds': expected a value in \(0, 60\], got 0"):
        torch.ops.tokcore.measure_peak("read", 0.0)
