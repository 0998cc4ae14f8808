from __future__ import annotations

import torch

from tokcore.testing.peaks import CUDA_KINDS, Peaks


def test_the_best_measurement_stays_and_lacking_units_are_absent() -> None:
    rates = iter([3.0, 0.0, 2.0, 5.0, 4.0, 0.0, 1.0, 6.0])
    peaks = Peaks()
    for _ in range(2):
        peaks.measure(probe=lambda kind, seconds: next(rates))
    assert peaks.rates == {"amx_bf16": 4.0, "fma_fp32": 2.0, "read": 6.0}
    assert peaks.arithmetic(torch.bfloat16) == ("amx_bf16", 4.0)
    assert peaks.arithmetic(torch.float32) == ("fma_fp32", 2.0)
    assert peaks.arithmetic(torch.int8) is None
    assert peaks.bandwidth() == ("read", 6.0)


def test_a_gpu_is_held_against_its_own_product_and_copy() -> None:
    peaks = Peaks()
    peaks.measure(CUDA_KINDS, probe=lambda kind, seconds: float(len(kind)))
    assert peaks.arithmetic(torch.bfloat16) == ("matmul_bf16", 11.0)
    assert peaks.arithmetic(torch.float32) == ("matmul_fp32", 11.0)
    assert peaks.bandwidth() == ("copy", 4.0)


def test_bf16_without_tiles_is_held_against_fma() -> None:
    assert Peaks({"fma_fp32": 2.0}).arithmetic(torch.bfloat16) == ("fma_fp32", 2.0)
    assert Peaks().arithmetic(torch.bfloat16) is None
    assert Peaks().bandwidth() is None
