"""Finding what was planted: half of the tokens evicted, or all of them retained in fewer bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokcore import QuantizedKVCache
from tokcore.demo.cached_model import CachedTransformer
from tokcore.demo.kv_cache.perplexity import bytes_per_token
from tokcore.demo.kv_cache.retrieval_task import Questions, RetrievalSettings, make_questions
from tokcore.demo.kv_cache.schemes import BF16, INT4_ROTATED, MIXED, Calibration, Scheme, cached, take_prompt
from tokcore.demo.model import Attention, Block, Transformer
from tokcore.demo.progress import Progress

PAGE_SIZE = 16
RESIDUAL = 16
OUTLIER = 100.0
PER_TENSOR = "int4, one scale per tensor"


def memory_schemes(capacity: int) -> tuple[Scheme, ...]:
    """Everything kept, half of it evicted in two ways, and half or all of it in fewer bits."""
    halves = {"high": "bf16", "high_ratio": 0.5}
    half = {"ratio": 0.5}
    recent = {"high": None, "low": None, "residual": capacity // 2 - PAGE_SIZE}
    return (
        BF16,
        Scheme("evict the older half", recent),
        Scheme("evict the less important half", {**halves, "low": "int2"}, half, evicts=True),
        Scheme("retain that half in int4", {**halves, "low": "int4"}, half),
        Scheme("retain that half in int2", {**halves, "low": "int2"}, half),
        MIXED,
    )


OUTLIER_SCHEMES = (
    BF16,
    Scheme("int4 by token", {"high": "int4", "low": None}),
    Scheme("int4 by token, balanced", {"high": "int4", "low": None}, channel_scales=("k",)),
    Scheme("int4, keys by channel", {"high": "int4", "low": None, "k_axis": "channel"}),
    INT4_ROTATED,
    MIXED,
)


@dataclass(frozen=True)
class Retrieved:
    """Share of right answers over a cache, and its bytes per token of room (None: a baseline that is only emulated).

    ``forgets``: it drops tokens, or has one scale for everything.
    """

    scheme: str
    accuracy: float
    bytes_per_token: float | None
    forgets: bool = False


def ask(run: CachedTransformer, questions: Questions) -> float:
    """Share of the questions, asked one token after the other, that are answered by the planted value."""
    right = []
    for index in range(questions.keys.size(1)):
        logits = run.logits(run(questions.keys[:, index : index + 1]))[:, 0]
        right.append(logits.argmax(-1) == questions.values[:, index])
    return torch.stack(right).float().mean().item()


def measure_retrieval(
    model: Transformer, settings: RetrievalSettings, batch: int, asked: int, seed: int, progress: Progress
) -> list[Retrieved]:
    """Accuracy of every memory scheme on the same prompts, which are as long as the last stage's."""
    planted, filler = settings.stages[-1]
    questions, calibration = _material(model, settings, batch, planted, filler, asked, seed)
    capacity = questions.tokens.size(1)
    results = []
    schemes = memory_schemes(capacity)
    with progress.stage("retrieval by cache", len(schemes)) as stage:
        for scheme in schemes:
            changes = {"page_size": PAGE_SIZE, "residual": scheme.options.get("residual", RESIDUAL)}
            run = cached(model, scheme, batch, capacity, calibration, **changes)
            take_prompt(run, scheme, questions.prompt, seed)
            memory = bytes_per_token(model, scheme, capacity, changes)
            forgets = scheme.evicts or scheme.options["high"] is None
            found = Retrieved(scheme.name, ask(run, questions), memory, forgets)
            results.append(found)
            stage.advance(f"{scheme.name} {found.accuracy:.1%}")
    return results


class PerTensorInt4Cache(QuantizedKVCache):
    """The baseline: every key and value of a layer rounded to 4 bits by one scale, that of the layer's prompt."""

    _steps: dict[tuple[int, str], Tensor]

    def append(
        self,
        layer: int,
        k: Tensor,
        v: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        *,
        validate: bool = True,
    ) -> None:
        """Rounds, then appends."""
        if not hasattr(self, "_steps"):
            self._steps = {}
        super().append(layer, self._round(layer, "k", k), self._round(layer, "v", v), lengths, validate=validate)

    def _round(self, layer: int, name: str, x: Tensor) -> Tensor:
        step = self._steps.setdefault((layer, name), x.abs().amax().float() / 7.0)
        return ((x / step).round().clamp(-7, 7) * step).to(x.dtype)


def plant_outlier(model: Transformer, factor: float = OUTLIER) -> Transformer:
    """A copy whose keys have an outlier channel ``factor`` times as large, and whose queries have the inverse.

    Both channels of a rotary pair are scaled alike, so that the model computes what it did before: exactly in exact
    arithmetic, and up to rounding in bf16.
    """
    changed = copy.deepcopy(model)
    config = model.config
    channels = torch.tensor([config.head_dim // 2 - 1, config.head_dim - 1])
    with torch.no_grad():
        for block in changed.blocks:
            assert isinstance(block, Block)
            attention = block.attention
            assert isinstance(attention, Attention)
            for layer, change in ((attention.key, factor), (attention.query, 1.0 / factor)):
                layer.weight.view(-1, config.head_dim, layer.weight.size(1))[:, channels] *= change
    return changed


def measure_outliers(
    model: Transformer, settings: RetrievalSettings, batch: int, asked: int, seed: int, progress: Progress
) -> list[Retrieved]:
    """Accuracy with an outlier channel in the keys: one scale per tensor beside what tokcore's caches do about it."""
    planted, filler = settings.stages[-1]
    outlying = plant_outlier(model)
    questions, calibration = _material(outlying, settings, batch, planted, filler, asked, seed)
    capacity = questions.tokens.size(1)
    changes = {"page_size": PAGE_SIZE, "residual": RESIDUAL}
    results = []
    with progress.stage("retrieval with an outlier channel", 1 + len(OUTLIER_SCHEMES)) as stage:
        for scheme in OUTLIER_SCHEMES:
            run = cached(outlying, scheme, batch, capacity, calibration, **changes)
            take_prompt(run, scheme, questions.prompt, seed)
            memory = bytes_per_token(outlying, scheme, capacity, changes)
            results.append(Retrieved(scheme.name, ask(run, questions), memory))
            stage.advance(f"{scheme.name} {results[-1].accuracy:.1%}")
        base = CachedTransformer(outlying, _per_tensor_factory(batch, capacity))
        base(questions.prompt)
        results.insert(1, Retrieved(PER_TENSOR, ask(base, questions), None, forgets=True))
        stage.advance(f"{PER_TENSOR} {results[1].accuracy:.1%}")
    return results


def _per_tensor_factory(batch: int, capacity: int) -> Callable[..., QuantizedKVCache]:
    def make(**sizes: object) -> QuantizedKVCache:
        return PerTensorInt4Cache(batch=batch, capacity=capacity, high="bf16", low=None, **sizes)  # type: ignore[arg-type]

    return make


def _material(
    model: Transformer, settings: RetrievalSettings, batch: int, planted: int, filler: int, asked: int, seed: int
) -> tuple[Questions, Calibration]:
    """Prompts that training never saw, and channel scales from others."""
    generator = torch.Generator().manual_seed(seed + 1_000_003)
    questions = make_questions(settings, batch, planted, filler, asked, generator)
    others = make_questions(settings, 4, planted, filler, asked, generator)
    return questions, Calibration(model, others.tokens)
