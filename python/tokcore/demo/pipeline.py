"""The demo from corpus to report."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from tokcore.demo.act import ActContext
from tokcore.demo.acts import ACTS
from tokcore.demo.agreement import judge_agreement
from tokcore.demo.checkpoint import default_cache, save_checkpoint
from tokcore.demo.corpus import load_corpus
from tokcore.demo.costs import measure_costs
from tokcore.demo.plots import plot_costs, plot_filter, plot_losses
from tokcore.demo.probe import gradient_errors
from tokcore.demo.progress import Progress
from tokcore.demo.render_html import write_html
from tokcore.demo.render_png import write_pngs
from tokcore.demo.report import Report, print_paths, print_report
from tokcore.demo.score import WINDOWS_PER_BATCH, score_document, scoring_windows
from tokcore.demo.settings import FULL, QUICK, DemoSettings
from tokcore.demo.tables import write_tables
from tokcore.demo.tokenizer import cached_tokenizer, encode_stream
from tokcore.demo.train import train_side_by_side

LOG_WIDTH = 130  # columns when standard output is a file: tables are not to be cut to 80


def run(
    quick: bool,
    out: Path,
    cache: Path | None,
    seed: int,
    settings: DemoSettings | None,
    root: Path | None,
    console: Console | None,
) -> int:
    """See :func:`tokcore.demo.run_demo`."""
    progress = Progress(console or _default_console())
    settings = replace(settings or (QUICK if quick else FULL), seed=seed)
    cache = cache or default_cache()
    out.mkdir(parents=True, exist_ok=True)

    corpus = load_corpus(root)
    megabytes = corpus.num_chars / 1e6
    progress.say(f"corpus: {len(corpus.documents)} files, {megabytes:.1f} MB; held out: {corpus.held_out.name}")
    progress.say(f"tokenizer: byte-level BPE of {settings.model.vocab_size} tokens ...")
    tokenizer, was_cached = cached_tokenizer(corpus, settings.model.vocab_size, cache)
    tokens = encode_stream(tokenizer, [document.text for document in corpus.documents])
    origin = "read from the cache" if was_cached else "trained"
    progress.say(f"tokenizer: {origin}; {tokenizer.get_vocab_size()} tokens, corpus of {tokens.numel()} tokens")
    progress.say(
        f"training: {settings.steps} steps of {settings.tokens_per_step} tokens, three losses side by side, "
        f"{torch.get_num_threads()} threads"
    )
    training = train_side_by_side(tokens, settings, progress)
    ours = training.trainees["tokcore"]
    inputs = ours.last_inputs
    assert inputs is not None

    checkpoint = cache / ("quick" if quick else "full")
    save_checkpoint(checkpoint, ours.model, tokenizer, inputs, settings, corpus.fingerprint())
    curves = {name: trainee.losses for name, trainee in training.trainees.items()}
    agreement = judge_agreement(curves["tokcore"], curves["eager"], curves["eager upcast"], settings.tokens_per_step)
    errors = gradient_errors(inputs.e, inputs.c, inputs.targets)
    costs = measure_costs(training, checkpoint / "loss_inputs.safetensors", progress)

    held_out_tokens = encode_stream(tokenizer, [corpus.held_out.text]).numel() - 1
    batches = math.ceil(len(scoring_windows(held_out_tokens, settings.seq_len)) / WINDOWS_PER_BATCH)
    with progress.stage(f"scoring {corpus.held_out.name}", batches) as stage:
        scored = score_document(ours.model, tokenizer, corpus.held_out, settings.seq_len, settings.topk, stage)

    page = out / "entropy.html"
    pictures = [page]
    with progress.stage("pictures", 5) as stage:
        write_html(scored, page)
        stage.advance(page.name)
        makers: list[Callable[[], list[Path]]] = [
            lambda: plot_losses(training, agreement, out),
            lambda: plot_costs(costs, inputs, out),
            lambda: plot_filter(training, out),
            lambda: write_pngs(scored, out),
        ]
        for make in makers:
            pictures += make()
            stage.advance(pictures[-1].name)
    data = write_tables(out, training, costs, scored)
    report = Report(training, agreement, costs, errors, scored)
    print_report(report, progress.console)
    passed = agreement.passed
    context = ActContext(ours.model, tokenizer, corpus, tokens, settings, quick, out, cache, progress)
    for act in ACTS:
        result = act(context)
        for part in result.report:
            progress.console.print(part, highlight=False)
        pictures += result.pictures
        data += result.data
        passed = passed and result.passed
    print_paths(pictures, data, checkpoint, progress)
    return 0 if passed else 1


def _default_console() -> Console:
    is_fixed = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if is_fixed else LOG_WIDTH)
