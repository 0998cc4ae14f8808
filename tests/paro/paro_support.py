"""Samples small enough for a test."""

from __future__ import annotations

import torch

from tokcore.paro import AttentionSample, ParoPlan, calibrate_paro

GRID, TEXT = (3, 8, 12), (5, 7)
NUM_TOKENS = 3 * 8 * 12 + 12
DENSITY = 0.8  # text alone needs 16 of the 25 blocks


def sample(step: int = 0, layer: str = "a", *, batch: int = 1, heads: int = 2, seed: int = 0) -> AttentionSample:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, batch, heads, NUM_TOKENS, 32, generator=generator)
    return AttentionSample(step, layer, 2 * q, k, v)


def small_plan(**options: float) -> ParoPlan:
    samples = [sample(step, layer, seed=step * 2 + number) for step in (0, 4, 8) for number, layer in enumerate("ab")]
    return calibrate_paro(samples, GRID, TEXT, DENSITY, **options)  # type: ignore[arg-type]
