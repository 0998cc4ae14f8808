"""Calibration of PARO attention: samples of a model's attention in, orders of tokens and block masks out."""

from __future__ import annotations

from tokcore.paro.calibrate import calibrate_paro
from tokcore.paro.capture import Capture, capture
from tokcore.paro.plan import CLASSES, ParoPlan
from tokcore.paro.samples import AttentionSample, Sample, StoredSample, load_samples, save_sample

__all__ = [
    "CLASSES",
    "AttentionSample",
    "Capture",
    "ParoPlan",
    "Sample",
    "StoredSample",
    "calibrate_paro",
    "capture",
    "load_samples",
    "save_sample",
]
