"""Score a document token by token: log-probability, entropy and the most probable alternatives, without any logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

import tokcore
from tokcore import LinearLogprobs
from tokcore.demo.corpus import Document
from tokcore.demo.model import Transformer
from tokcore.demo.progress import Stage
from tokcore.demo.tokenizer import encode_stream, token_texts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

WINDOWS_PER_BATCH = 8


@dataclass(frozen=True)
class ScoredText:
    """N tokens of a document, each scored from the tokens before it; logarithms are natural.

    ``texts``: the characters that each token shows; ``logprob`` [N]: of the token that stands there; ``entropy`` [N]:
    of the model's distribution; ``topk_logprob`` [N, k] and ``topk_texts``: the most probable tokens, falling.
    """

    name: str
    texts: tuple[str, ...]
    logprob: Tensor
    entropy: Tensor
    topk_logprob: Tensor
    topk_texts: tuple[tuple[str, ...], ...]

    @property
    def loss(self) -> float:
        """Mean negative log-probability per token, in nats."""
        return -self.logprob.double().mean().item()

    @property
    def bits_per_byte(self) -> float:
        """Negative log-probability of the whole document, in bits, over its length in UTF-8 bytes."""
        num_bytes = len("".join(self.texts).encode("utf-8", errors="surrogatepass"))
        return -self.logprob.double().sum().item() / math.log(2.0) / num_bytes

    @property
    def mean_entropy(self) -> float:
        """Mean entropy per token, in nats."""
        return self.entropy.double().mean().item()

    def highest_entropy(self, count: int) -> list[int]:
        """Positions of the ``count`` tokens of highest entropy that show something, in falling order."""
        order = self.entropy.argsort(descending=True, stable=True).tolist()
        return [position for position in order if self.texts[position].strip()][:count]


@dataclass(frozen=True)
class Window:
    """Predictions ``start`` .. ``start + length`` are computed, those from ``first_new`` on are kept."""

    start: int
    first_new: int


def scoring_windows(num_predictions: int, length: int) -> list[Window]:
    """Windows of ``length`` that overlap by half: past the first window every token sees ``length``/2 before it.

    Every prediction is kept by exactly one window; the last window is moved back to end with the text.
    """
    length = min(length, num_predictions)
    windows: list[Window] = []
    covered = 0
    while covered < num_predictions:
        start = 0 if not windows else min(covered - length // 2, num_predictions - length)
        windows.append(Window(start, covered))
        covered = start + length
    return windows


def _concatenate(parts: list[LinearLogprobs]) -> LinearLogprobs:
    columns = (None if column[0] is None else torch.cat(column) for column in zip(*parts, strict=True))
    return LinearLogprobs(*columns)  # type: ignore[arg-type]  # logprob and lse are never None


@torch.no_grad()
def score_tokens(
    model: Transformer, stream: Tensor, length: int, topk: int, stage: Stage | None = None
) -> LinearLogprobs:
    """Score stream[1:] given what comes before, for a token stream [N+1] int64; every result has N rows.

    ``stage`` advances once per ``WINDOWS_PER_BATCH`` windows.
    """
    num_predictions = stream.numel() - 1
    windows = scoring_windows(num_predictions, length)
    length = min(length, num_predictions)
    classifier = model.classifier()
    parts: list[LinearLogprobs] = []
    for first in range(0, len(windows), WINDOWS_PER_BATCH):
        batch = windows[first : first + WINDOWS_PER_BATCH]
        rows = torch.tensor([window.start for window in batch])[:, None] + torch.arange(length)
        kept = rows >= torch.tensor([window.first_new for window in batch])[:, None]
        hidden = model(stream[rows])[kept]
        targets = stream[rows[kept] + 1]
        parts.append(tokcore.linear_logprobs(hidden, classifier, targets, entropy=True, topk=topk))
        if stage is not None:
            stage.advance(f"{targets.numel()} tokens")
    return _concatenate(parts)


def score_document(
    model: Transformer, tokenizer: Tokenizer, document: Document, length: int, topk: int, stage: Stage | None = None
) -> ScoredText:
    """Score every token of ``document``, which follows the end-of-text token."""
    stream = encode_stream(tokenizer, [document.text])
    if stream.numel() < 2:
        raise ValueError(f"tokcore demo: expected a document with text, got an empty {document.name!r}")
    result = score_tokens(model, stream, length, topk, stage)
    assert result.entropy is not None
    assert result.topk_values is not None
    assert result.topk_indices is not None
    return ScoredText(
        name=document.name,
        texts=tuple(token_texts(tokenizer, stream[1:].tolist())),
        logprob=result.logprob,
        entropy=result.entropy,
        topk_logprob=result.topk_values,
        topk_texts=tuple(tuple(tokenizer.decode([i]) for i in row) for row in result.topk_indices.tolist()),
    )
