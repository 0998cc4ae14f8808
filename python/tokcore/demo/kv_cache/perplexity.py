"""Perplexity of the held-out text, decoded token by token over a cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokcore import linear_logprobs
from tokcore.demo.kv_cache.schemes import Calibration, Scheme, cached, page_bytes, take_prompt
from tokcore.demo.model import Transformer
from tokcore.demo.progress import Progress


@dataclass(frozen=True)
class Quality:
    """What one cache kept of the text. ``bytes_per_token``: all that was allocated, over the tokens it has room for."""

    scheme: str
    perplexity: float
    bytes_per_token: float


def text_windows(stream: Tensor, length: int, most: int) -> Tensor:
    """Neighbouring windows [B, length + 1] of a token stream, each overlapping the next by one token."""
    count = min(most, (stream.numel() - 1) // length)
    if count < 1:
        raise ValueError(f"tokcore demo: expected at least {length + 1} held-out tokens, got {stream.numel()}")
    return stream[torch.arange(count)[:, None] * length + torch.arange(length + 1)]


@torch.no_grad()
def perplexity(
    model: Transformer, scheme: Scheme, windows: Tensor, calibration: Calibration, changes: dict[str, int]
) -> float:
    """exp of the mean negative log-probability of every window's second half.

    The first half is the prompt; then every token is decoded alone, from what the cache kept.
    """
    batch, length = windows.size(0), windows.size(1) - 1
    prompt = length // 2
    run = cached(model, scheme, batch, length, calibration, **changes)
    hidden = [take_prompt(run, scheme, windows[:, :prompt], seed=0)[:, -1:]]
    hidden += [run(windows[:, position : position + 1]) for position in range(prompt, length)]
    found = torch.cat(hidden, dim=1).flatten(0, 1)
    scored = linear_logprobs(found, run.model.classifier(), windows[:, prompt:].flatten())
    return math.exp(-scored.logprob.double().mean().item())


def measure_quality(
    model: Transformer,
    schemes: Sequence[Scheme],
    windows: Tensor,
    calibration: Calibration,
    changes: dict[str, int],
    capacity: int,
    progress: Progress,
) -> list[Quality]:
    """Perplexity over windows [B, S + 1], and the bytes per token of a cache for ``capacity`` tokens."""
    results = []
    with progress.stage("perplexity by cache", len(schemes)) as stage:
        for scheme in schemes:
            chosen = {**changes, "page_size": 32} if scheme.options.get("group") == 32 else changes
            value = perplexity(model, scheme, windows, calibration, chosen)
            results.append(Quality(scheme.name, value, bytes_per_token(model, scheme, capacity, chosen)))
            stage.advance(f"{scheme.name} {value:.2f}")
    return results


def bytes_per_token(model: Transformer, scheme: Scheme, capacity: int, changes: dict[str, int]) -> float:
    """Of a cache for one sequence of ``capacity`` tokens; an evicting one keeps no low tier."""
    config = model.config
    sizes = {"layers": config.num_layers, "kv_heads": config.num_kv_heads, "head_dim": config.head_dim}
    cache = scheme.cache(1, capacity, {**sizes, "dtype": model.compute_dtype}, **changes)
    dropped = page_bytes(cache, "low") if scheme.evicts else 0
    return (cache.nbytes - dropped) / capacity
