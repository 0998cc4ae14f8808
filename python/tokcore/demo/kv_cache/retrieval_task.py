"""A task that needs a long memory: values are planted with their keys, and much later a key is asked for.

A prompt is a start token, P planted lines "value key", then filler; questions are keys, each answered by its value.
Every symbol is a token of its own. A two-layer model of the demo's kind solves it by a head that looks at the token
before (layer one leaves its value in every key) and a head that looks for its like (layer two finds the key again).
Both take thousands of steps to appear by themselves; two things make hundreds do, and neither shows where a key lies:

* the second layer's queries start equal to its keys, so that a token attends to its like from the beginning;
* layer one is asked for the token before every planted key, beside the loss on the answers.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokcore.demo.losses import tokcore_loss
from tokcore.demo.model import Block, ModelConfig, Transformer
from tokcore.demo.progress import Progress

START = 0


@dataclass(frozen=True)
class RetrievalSettings:
    """Symbols of the task, sizes of its model, and the curriculum: (planted lines, filler) by stage."""

    num_keys: int = 128
    num_values: int = 32
    num_fillers: int = 31
    hidden_size: int = 128
    stages: tuple[tuple[int, int], ...] = ((8, 0), (16, 8), (32, 32), (64, 64), (96, 32))
    tokens_per_step: int = 2048
    learning_rate: float = 3e-3
    warmup_steps: int = 25
    stage_accuracy: float = 0.9  # smoothed over steps; the next stage begins there
    final_accuracy: float = 0.99  # and training ends here
    most_steps: int = 800

    @property
    def model(self) -> ModelConfig:
        """Two layers, each with two heads of keys."""
        return ModelConfig(
            vocab_size=1 + self.num_keys + self.num_values + self.num_fillers,
            hidden_size=self.hidden_size,
            num_layers=2,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            mlp_size=2 * self.hidden_size,
        )


@dataclass(frozen=True)
class Questions:
    """``prompt`` [B, 1 + 2P + filler]; ``keys`` [B, Q] asked for one after the other, ``values`` [B, Q] that answer."""

    prompt: Tensor
    keys: Tensor
    values: Tensor

    @property
    def tokens(self) -> Tensor:
        """Prompt and questions [B, N + Q]."""
        return torch.cat([self.prompt, self.keys], dim=1)


def make_questions(
    settings: RetrievalSettings, batch: int, planted: int, filler: int, asked: int, generator: torch.Generator
) -> Questions:
    """Random prompts with ``planted`` different keys each, of which ``asked`` different ones are asked for."""
    keys = torch.rand(batch, settings.num_keys, generator=generator).argsort(1)[:, :planted]
    values = torch.randint(settings.num_values, (batch, planted), generator=generator)
    key_tokens, value_tokens = 1 + keys, 1 + settings.num_keys + values
    lines = torch.stack([value_tokens, key_tokens], dim=-1).flatten(1)
    first_filler = 1 + settings.num_keys + settings.num_values
    fillers = first_filler + torch.randint(settings.num_fillers, (batch, filler), generator=generator)
    chosen = torch.rand(batch, planted, generator=generator).argsort(1)[:, :asked]
    return Questions(
        prompt=torch.cat([torch.full((batch, 1), START), lines, fillers], dim=1),
        keys=key_tokens.gather(1, chosen),
        values=value_tokens.gather(1, chosen),
    )


def new_model(settings: RetrievalSettings, seed: int) -> Transformer:
    """A model whose second layer attends to equal tokens from the beginning."""
    model = Transformer(settings.model, seed, compute_dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            continue
        # Small outputs: tokens are told apart by their embeddings until the layers have learnt something.
        small = name.endswith(("out.weight", "down.weight"))
        std = 0.2 if name == "embedding" else 0.01 if small else config.hidden_size**-0.5
        nn.init.normal_(parameter, std=std, generator=generator)
    second = model.blocks[1]
    assert isinstance(second, Block)
    keys = second.attention.key.weight.detach().view(config.num_kv_heads, config.head_dim, -1)
    group = config.num_heads // config.num_kv_heads
    with torch.no_grad():
        second.attention.query.weight.copy_(keys.repeat_interleave(group, dim=0).flatten(0, 1))
    return model


@dataclass(frozen=True)
class RetrievalTraining:
    """The trained model and what its training took."""

    model: Transformer
    steps: int
    seconds: float
    accuracy: float  # of the last steps, smoothed
    finished: bool  # reached the accuracy asked for


def train_retrieval(settings: RetrievalSettings, seed: int, progress: Progress) -> RetrievalTraining:
    """Trains by the curriculum until the last stage's answers are right; tokcore's loss on the answers alone."""
    start = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    model = new_model(settings, seed)
    after_first: list[Tensor] = []
    hook = model.blocks[0].register_forward_hook(lambda _, __, output: after_first.append(output))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)
    stage_index, accuracy, steps = 0, 0.0, 0
    finished = False
    with progress.stage("training for retrieval", settings.most_steps) as stage:
        while steps < settings.most_steps and not finished:
            planted, filler = settings.stages[stage_index]
            batch = max(4, settings.tokens_per_step // (3 * planted + filler))
            questions = make_questions(settings, batch, planted, filler, planted, generator)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * min(1.0, (steps + 1) / settings.warmup_steps)
            after_first.clear()
            hidden = model(questions.tokens)[:, questions.prompt.size(1) :].flatten(0, 1)
            classifier = model.classifier()
            loss = tokcore_loss(hidden, classifier, questions.values.flatten())
            before_keys = F.rms_norm(after_first[0][:, 2 : 2 * planted + 1 : 2], (settings.hidden_size,)).flatten(0, 1)
            loss = loss + tokcore_loss(before_keys, classifier, questions.prompt[:, 1 : 2 * planted : 2].flatten())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            steps += 1
            with torch.no_grad():
                right = (hidden @ classifier.T).argmax(-1) == questions.values.flatten()
            accuracy = 0.9 * accuracy + 0.1 * right.float().mean().item()
            is_last = stage_index == len(settings.stages) - 1
            if not is_last and accuracy > settings.stage_accuracy:
                stage_index, accuracy = stage_index + 1, 0.0
            finished = is_last and accuracy > settings.final_accuracy
            stage.advance(f"{planted} lines planted, {accuracy:.0%} of the answers right")
    hook.remove()
    return RetrievalTraining(model, steps, time.perf_counter() - start, accuracy, finished)
