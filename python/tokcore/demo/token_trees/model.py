"""The demo's model as :func:`tokcore.speculative.generate` takes one."""

from __future__ import annotations

import copy
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tokcore.demo.cached_model import CachedTransformer
from tokcore.demo.model import Transformer
from tokcore.ops.draft_candidates import Candidates
from tokcore.ops.kv_compact import kv_compact
from tokcore.ops.linear_logprobs import linear_logprobs
from tokcore.quantized_kv_cache import QuantizedKVCache
from tokcore.speculative.model import CacheOptions, cache_options
from tokcore.token_tree import TokenTree
from tokcore.verdict import Verdict

MOST_APPENDED = 256  # tokens of a prompt in one pass


class DemoModel:
    """A trained :class:`Transformer`; its weights are copied once, for all sessions."""

    def __init__(self, model: Transformer, capacity: int) -> None:
        """``capacity``: most tokens of a request of any session."""
        self.vocab_size = model.config.vocab_size
        self.compute_dtype = model.compute_dtype
        self.capacity = capacity
        # The cache that comes with it serves nobody; it is as small as can be.
        nobody = partial(QuantizedKVCache, batch=1, capacity=capacity, high=None, low=None)
        self.weights = CachedTransformer(model, nobody)

    def session(self, batch: int, capacity: int, cache: CacheOptions = None) -> DemoSession:
        """A session with a cache of its own; ``cache`` None keeps keys and values in the compute dtype."""
        config = self.weights.config
        sizes = (config.num_layers, batch, config.num_kv_heads, config.head_dim, capacity)
        if isinstance(cache, str):
            made = QuantizedKVCache.from_preset(cache, *sizes, dtype=self.compute_dtype)
        else:
            options = cache_options(cache, self.compute_dtype, capacity)
            made = QuantizedKVCache(*sizes, **options, dtype=self.compute_dtype)
        cached = copy.copy(self.weights)
        cached.cache = made
        return DemoSession(cached, self.vocab_size)


class DemoSession:
    """See :class:`tokcore.speculative.Session`."""

    def __init__(self, cached: CachedTransformer, vocab_size: int) -> None:
        self.cached, self.vocab_size = cached, vocab_size

    @property
    def lengths(self) -> Tensor:
        """Tokens in the cache, int32 [B]."""
        return self.cached.cache.lengths

    def append(self, tokens: Tensor, lengths: Tensor) -> None:
        """Prompts, a piece at a time."""
        for start in range(0, tokens.size(1), MOST_APPENDED):
            piece = tokens[:, start : start + MOST_APPENDED]
            self.cached.forward(piece, (lengths - start).clamp(0, piece.size(1)))

    def forward(self, tree: TokenTree) -> Tensor:
        """Hidden states of the nodes [B, N, C]."""
        positions = tree.positions(self.lengths).clamp(max=self.cached.cache.capacity - 1).to(torch.int64)
        return self.cached.forward(tree.tokens, tree.counts, positions, tree=tree)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] in the compute dtype."""
        return F.linear(hidden, self.cached.model.classifier())

    def top(self, hidden: Tensor, k: int) -> Candidates:
        """By the fused classifier of the first act: top-k and lse without logits."""
        rows = hidden.flatten(0, -2)
        nothing = torch.zeros(rows.size(0), dtype=torch.int64)
        found = linear_logprobs(rows, self.cached.model.classifier(), nothing, topk=k)
        assert found.topk_indices is not None
        assert found.topk_values is not None
        shape = (*hidden.shape[:-1], k)
        tokens = torch.where(found.topk_values.isnan(), -1, found.topk_indices).to(torch.int32)
        return Candidates(tokens.reshape(shape), found.topk_values.exp().reshape(shape))

    def compact(self, tree: TokenTree, verdict: Verdict) -> None:
        """In all layers at once."""
        kv_compact(self.cached.cache, verdict, tree)
