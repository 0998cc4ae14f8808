"""Time and memory of each loss in the training that just ran."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tokcore.demo.peak_memory import measure_peak_memory
from tokcore.demo.progress import Progress
from tokcore.demo.train import Step, Training
from tokcore.testing.memory import PeakMemory
from tokcore.testing.worker import WorkerError

WARM_UP_STEPS = 3  # code generation and first touches of memory


@dataclass(frozen=True)
class LossCost:
    """Medians over the training steps, and the peak memory of one call in a process of its own (None: not measured)."""

    name: str
    loss_seconds: float
    step_seconds: float
    memory: PeakMemory | None


def median_times(steps: Sequence[Step]) -> tuple[float, float]:
    """Median seconds of the loss and of the whole step, without the first steps when there are others."""
    timed = steps[WARM_UP_STEPS:] or steps
    return statistics.median(s.loss_seconds for s in timed), statistics.median(s.step_seconds for s in timed)


def measure_costs(training: Training, inputs: Path, progress: Progress) -> list[LossCost]:
    """Costs of every trainee; ``inputs`` is the checkpoint's ``loss_inputs.safetensors``."""
    costs = []
    with progress.stage("peak memory", len(training.trainees)) as stage:
        for name, trainee in training.trainees.items():
            memory = None
            try:
                memory = measure_peak_memory(inputs, name, torch.get_num_threads())
                note = f"{name} {memory.extra / 1e6:.1f} MB"
            except WorkerError as error:  # a kernel that hides /proc/self: no reason to lose the training
                note = f"{name} not measured: {error}"
            loss_seconds, step_seconds = median_times(trainee.steps)
            costs.append(LossCost(name, loss_seconds, step_seconds, memory))
            stage.advance(note)
    return costs
