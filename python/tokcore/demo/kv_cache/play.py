"""The act from the trained model to its report."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from tokcore.demo.act import ActContext, ActResult
from tokcore.demo.kv_cache.generation import generate_side_by_side, measure_latency
from tokcore.demo.kv_cache.perplexity import measure_quality, text_windows
from tokcore.demo.kv_cache.pictures import plot_latency, plot_memory, plot_outliers
from tokcore.demo.kv_cache.report import Findings, judge, report, write_tables
from tokcore.demo.kv_cache.retrieval import measure_outliers, measure_retrieval
from tokcore.demo.kv_cache.retrieval_task import RetrievalSettings, train_retrieval
from tokcore.demo.kv_cache.schemes import QUALITY_SCHEMES, TIMED_SCHEMES, Calibration
from tokcore.demo.tokenizer import encode_stream

CALIBRATION_WINDOWS = 4


@dataclass(frozen=True)
class KVCacheSettings:
    """Sizes of the act."""

    windows: int = 24  # of held-out text, each as long as the training's
    page_size: int = 16
    residual: int = 32
    memory_capacity: int = 4096  # tokens of the caches whose bytes are told
    generated: int = 96
    lengths: tuple[int, ...] = (1024, 4096, 16384, 65536)
    rounds: int = 15
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    prompts: int = 32
    questions: int = 16


FULL = KVCacheSettings()
QUICK = KVCacheSettings(windows=8, generated=32, lengths=(1024, 8192, 32768), rounds=9, prompts=16)


def play(context: ActContext, settings: KVCacheSettings | None = None) -> ActResult:
    """Play the act: quality, generation, latency and retrieval over caches of several precisions."""
    settings = settings or (QUICK if context.quick else FULL)
    progress, seed = context.progress, context.settings.seed
    length = context.settings.seq_len
    changes = {"page_size": settings.page_size, "residual": min(settings.residual, length // 4)}
    progress.say("act 3: the KV cache in fewer bits")
    held_out = encode_stream(context.tokenizer, [context.corpus.held_out.text])
    windows = text_windows(held_out, length, settings.windows)
    calibration = Calibration(context.model, text_windows(context.tokens, length, CALIBRATION_WINDOWS)[:, :-1])
    capacity = settings.memory_capacity
    quality = measure_quality(context.model, QUALITY_SCHEMES, windows, calibration, changes, capacity, progress)
    prompt = windows[-1:, : length // 2]
    generated = generate_side_by_side(
        context.model, QUALITY_SCHEMES, prompt, settings.generated, calibration, changes, progress
    )
    latency = measure_latency(context.model, TIMED_SCHEMES, settings.lengths, settings.rounds, calibration, progress)
    training = train_retrieval(settings.retrieval, seed, progress)
    training.model.compute_dtype = torch.bfloat16
    asked = (settings.retrieval, settings.prompts, settings.questions, seed, progress)
    findings = Findings(
        quality=quality,
        generated=generated,
        text=repr(context.tokenizer.decode(list(generated[0].tokens))),
        latency=latency,
        training=training,
        task=settings.retrieval,
        retrieved=measure_retrieval(training.model, *asked),
        outliers=measure_outliers(training.model, *asked),
    )
    verdicts = judge(findings)
    pictures = [
        *plot_memory(findings, context.out),
        *plot_latency(latency, context.out),
        *plot_outliers(findings.outliers, context.out),
    ]
    return ActResult(
        passed=all(verdict.passed for verdict in verdicts),
        report=report(findings, verdicts),
        pictures=pictures,
        data=write_tables(context.out, findings),
    )
