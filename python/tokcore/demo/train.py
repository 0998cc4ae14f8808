"""Train the same model on the same batches with several losses, step by step side by side."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokcore.demo.losses import LOSSES
from tokcore.demo.model import Transformer
from tokcore.demo.probe import FilterProbe, probe_filter
from tokcore.demo.progress import Progress
from tokcore.demo.settings import DemoSettings


@dataclass(frozen=True)
class Step:
    """One optimizer step: the loss, the seconds of its forward and backward alone, and of the whole step."""

    loss: float
    loss_seconds: float
    step_seconds: float


@dataclass(frozen=True)
class LossInputs:
    """What a loss saw: hidden states e [T, C], classifier c [V, C], both with gradients, and targets [T]."""

    e: Tensor
    c: Tensor
    targets: Tensor


class Trainee:
    """A model, its optimizer (AdamW on fp32 master weights) and the loss it is trained with."""

    def __init__(self, name: str, settings: DemoSettings) -> None:
        self.name = name
        self.settings = settings
        self.model = Transformer(settings.model, seed=settings.seed)
        self.steps: list[Step] = []
        self.last_inputs: LossInputs | None = None
        matrices = [parameter for parameter in self.model.parameters() if parameter.dim() > 1]
        vectors = [parameter for parameter in self.model.parameters() if parameter.dim() == 1]
        groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(
            groups, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay, fused=True
        )

    def train_step(self, windows: Tensor) -> Step:
        """One step on windows [B, S+1]: tokens 0..S-1 predict tokens 1..S."""
        start = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(len(self.steps), self.settings)
        self.optimizer.zero_grad(set_to_none=True)
        hidden = self.model(windows[:, :-1])
        classifier = self.model.classifier()
        # The loss works on detached leaves, so that its forward and backward can be timed apart from the body's.
        e = hidden.detach().flatten(0, 1).requires_grad_()
        c = classifier.detach().requires_grad_()
        targets = windows[:, 1:].flatten()
        loss_start = time.perf_counter()
        loss = LOSSES[self.name](e, c, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        loss_seconds = time.perf_counter() - loss_start
        assert e.grad is not None
        assert c.grad is not None
        torch.autograd.backward((hidden, classifier), (e.grad.view_as(hidden), c.grad))
        nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        step = Step(loss.item(), loss_seconds, time.perf_counter() - start)
        self.steps.append(step)
        self.last_inputs = LossInputs(e, c, targets)
        return step

    @property
    def losses(self) -> list[float]:
        """One loss per step so far."""
        return [step.loss for step in self.steps]


@dataclass(frozen=True)
class Training:
    """Every trainee with its steps, and what the gradient filter would have done along tokcore's training."""

    trainees: dict[str, Trainee]
    probes: list[FilterProbe]


def learning_rate(step: int, settings: DemoSettings) -> float:
    """Linear warm-up, then a cosine down to a tenth of the peak."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    progress = (step - settings.warmup_steps) / max(1, settings.steps - settings.warmup_steps)
    return settings.learning_rate * (0.55 + 0.45 * math.cos(math.pi * progress))


def sample_windows(tokens: Tensor, settings: DemoSettings, generator: torch.Generator) -> Tensor:
    """Windows [B, S+1] that start at random positions of the token stream."""
    length = settings.seq_len + 1
    if tokens.numel() < length:
        raise ValueError(f"tokcore demo: expected at least {length} training tokens, got {tokens.numel()}")
    starts = torch.randint(tokens.numel() - length + 1, (settings.batch_size,), generator=generator)
    return tokens[starts[:, None] + torch.arange(length)]


def train_side_by_side(
    tokens: Tensor, settings: DemoSettings, progress: Progress, names: Sequence[str] = tuple(LOSSES)
) -> Training:
    """Train one model per loss for ``settings.steps`` steps from the same weights on the same batches.

    The trainees take turns within every step, in rotating order, so that whatever else the machine does meets all of
    them. Deterministic given the seed and the number of threads.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    trainees = {name: Trainee(name, settings) for name in names}
    probes: list[FilterProbe] = []
    with progress.stage("training", settings.steps) as stage:
        for index in range(settings.steps):
            windows = sample_windows(tokens, settings, generator)
            turn = index % len(names)
            for name in (*names[turn:], *names[:turn]):
                trainees[name].train_step(windows)
            if index % settings.probe_every == 0 or index == settings.steps - 1:
                inputs = trainees["tokcore"].last_inputs
                assert inputs is not None
                probes.append(probe_filter(index, inputs.e, inputs.c, inputs.targets))
            stage.advance(", ".join(f"{name} {trainees[name].steps[-1].loss:.3f}" for name in names))
    return Training(trainees, probes)
