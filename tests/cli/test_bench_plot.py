from __future__ import annotations

from tokcore.cli.bench.plot import bar_limit
from tokcore.cli.bench.tables import rate_text


def test_one_slow_peer_does_not_flatten_the_others() -> None:
    assert bar_limit([60.0, 74.0, 30.0, 3904.0]) == 74.0
    assert bar_limit([60.0, 74.0, 30.0]) == 74.0
    assert bar_limit([5.0]) == 5.0


def test_rates_are_of_the_limit_that_binds() -> None:
    assert rate_text(2.71e12, 5e9, "amx_bf16") == "2.71 TFLOP/s"
    assert rate_text(2.71e10, 5e9, None) == "27.1 GFLOP/s"
    assert rate_text(2.71e10, 5e9, "read") == "5 GB/s"
    assert rate_text(None, None, None) == "—"
