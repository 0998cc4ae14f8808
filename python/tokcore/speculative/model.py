"""What :func:`tokcore.speculative.generate` asks of a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from tokcore.ops.draft_candidates import Candidates, draft_candidates
from tokcore.token_tree import TokenTree
from tokcore.verdict import Verdict

CacheOptions = str | Mapping[str, Any] | None
"""A preset's name (:data:`tokcore.KV_PRESETS`), options of :class:`tokcore.QuantizedKVCache`, or None: nothing is
quantized."""

PLAIN_FORMATS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


def cache_options(cache: Mapping[str, Any] | None, dtype: torch.dtype, capacity: int) -> dict[str, Any]:
    """Options of :class:`tokcore.QuantizedKVCache` for keys and values of ``dtype`` in [fp32, bf16, fp16].

    With None all tokens stay in the window. Nothing moves to a page then, which a tree makes happen sooner than single
    tokens do: sums are taken over the same pieces, and greedy text is that of plain decoding to the last bit.
    """
    plain: dict[str, Any] = {"high": PLAIN_FORMATS[dtype], "low": None}
    return {**plain, "residual": capacity} if cache is None else {**plain, **cache}


class Session(Protocol):
    """A model at work on B requests, with a cache of its own.

    ``hidden`` is whatever ``forward`` returns of [B, T, …]: only the session itself looks into it.
    """

    vocab_size: int

    @property
    def lengths(self) -> Tensor:
        """Tokens in the cache, int32 [B]."""

    def append(self, tokens: Tensor, lengths: Tensor) -> None:
        """Takes the first ``lengths[b]`` of tokens [B, T] into the cache; nothing is asked of the model."""

    def forward(self, tree: TokenTree) -> Tensor:
        """Takes the tree's nodes into the cache behind what is there and returns their hidden states [B, N, …].

        A node sees the cache and its ancestors, and stands at position length + depth.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states."""

    def top(self, hidden: Tensor, k: int) -> Candidates:
        """The k likeliest tokens: as :func:`draft_candidates` of the logits, perhaps without the logits."""

    def compact(self, tree: TokenTree, verdict: Verdict) -> None:
        """Keeps the accepted path of the tree last taken in, and forgets its other nodes."""


class SpeculativeModel(Protocol):
    """A causal language model."""

    vocab_size: int

    def session(self, batch: int, capacity: int, cache: CacheOptions = None) -> Session:
        """A session for ``batch`` requests of at most ``capacity`` tokens, trees included."""


def top_of_logits(session: Session, hidden: Tensor, k: int) -> Candidates:
    """``Session.top`` for a model that has nothing better."""
    return draft_candidates(session.logits(hidden), k)
