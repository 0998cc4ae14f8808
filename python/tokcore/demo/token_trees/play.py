"""The act from the trained model to its report."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokcore.demo.act import ActContext, ActResult
from tokcore.demo.model import ModelConfig, Transformer
from tokcore.demo.progress import Progress
from tokcore.demo.settings import DemoSettings
from tokcore.demo.token_trees.chance import Sampling, compare_samples
from tokcore.demo.token_trees.model import DemoModel
from tokcore.demo.token_trees.pictures import plot_accepted, plot_speed, plot_step
from tokcore.demo.token_trees.report import report, write_tables
from tokcore.demo.token_trees.speed import ALWAYS, generate_in_turns, make_methods
from tokcore.demo.tokenizer import encode_stream
from tokcore.demo.train import Trainee, sample_windows
from tokcore.speculative import Drafter, DySpec, NGram, TokenRecycling, greedy_template


@dataclass(frozen=True)
class TokenTreeSettings:
    """Sizes of the act."""

    prompts: int = 4
    prompt_tokens: int = 64
    new_tokens: int = 192
    rounds: int = 3
    draft_steps: int = 120  # of the draft model's training
    draft_hidden: int = 128
    batches: int = 24  # of sampled continuations
    batch: int = 64
    temperature: float = 0.8


FULL = TokenTreeSettings()
QUICK = TokenTreeSettings(prompts=2, new_tokens=96, rounds=2, draft_steps=30, batches=6)


def play(context: ActContext, settings: TokenTreeSettings | None = None) -> ActResult:
    """Play the act: a draft model is trained, then every method generates in turns, then samples are compared."""
    settings = settings or (QUICK if context.quick else FULL)
    progress = context.progress
    progress.say("act 4: code from token trees")
    model = DemoModel(context.model, settings.prompt_tokens + settings.new_tokens + 512)
    draft = DemoModel(train_draft_model(context, settings, progress), model.capacity)
    prompts = held_out_prompts(context, settings)
    methods = make_methods(draft, drafters)
    texts, drawn = generate_in_turns(model, methods, prompts, settings.new_tokens, settings.rounds, progress)
    chances = [compare_samples(model, sampling, prompts[0], progress) for sampling in samplings(draft, settings)]
    liveliest = max(texts, key=lambda text: len(set(text.tolist())))
    shown = context.tokenizer.decode(liveliest.tolist())
    pictures = [*plot_speed(methods, context.out), *plot_accepted(methods, context.out)]
    if drawn is not None:
        pictures += plot_step(drawn, context.tokenizer, context.out)
    return ActResult(
        passed=all(chance.passed for chance in chances) and not any(method.differing for method in methods),
        report=report(methods, chances, shown, settings.new_tokens),
        pictures=pictures,
        data=write_tables(methods, drawn, context.tokenizer, context.out),
    )


def drafters(draft: DemoModel) -> dict[str, Drafter]:
    """Those that the act compares."""
    return {
        "Token Recycling": TokenRecycling(),
        "n-gram lookup": NGram(16),
        "DySpec, small model": DySpec(draft, 16, children=4, max_depth=4),
        ALWAYS + "DySpec, 16 nodes": DySpec(draft, 16, children=4, max_depth=4),
    }


def samplings(draft: DemoModel, settings: TokenTreeSettings) -> list[Sampling]:
    """Any tree under the coupled rule, and DySpec's own: siblings drawn without replacement and tested against q."""
    sizes = settings.temperature, settings.batches, settings.batch
    return [
        Sampling("Token Recycling, coupled", TokenRecycling(greedy_template(12, 3)), "coupled", *sizes),
        Sampling(
            "DySpec, without replacement", DySpec(draft, 8, children=3, max_depth=3), "without_replacement", *sizes
        ),
    ]


def train_draft_model(context: ActContext, settings: TokenTreeSettings, progress: Progress) -> Transformer:
    """A model of one layer with the same vocabulary, trained on the same text with the same loss."""
    target = context.settings.model
    heads = max(1, settings.draft_hidden // target.head_dim)
    config = ModelConfig(
        vocab_size=target.vocab_size,
        hidden_size=settings.draft_hidden,
        num_layers=1,
        num_heads=heads,
        num_kv_heads=1,
        head_dim=target.head_dim,
        mlp_size=2 * settings.draft_hidden,
    )
    warmup = max(1, settings.draft_steps // 10)
    sizes: DemoSettings = replace(
        context.settings,
        model=config,
        steps=settings.draft_steps,
        warmup_steps=warmup,
        learning_rate=3.0 * context.settings.learning_rate,
    )
    trainee = Trainee("tokcore", sizes)
    generator = torch.Generator().manual_seed(sizes.seed + 1)
    with progress.stage("draft model", sizes.steps) as stage:
        for _ in range(sizes.steps):
            step = trainee.train_step(sample_windows(context.tokens, sizes, generator))
            stage.advance(f"loss {step.loss:.3f}")
    return trainee.model


def held_out_prompts(context: ActContext, settings: TokenTreeSettings) -> Tensor:
    """Pieces of the text that training never saw, evenly spread."""
    text = encode_stream(context.tokenizer, [context.corpus.held_out.text])
    length = min(settings.prompt_tokens, text.numel() - 1)
    starts = torch.linspace(0, text.numel() - length, settings.prompts).long()
    return text[starts.unsqueeze(1) + torch.arange(length)]
