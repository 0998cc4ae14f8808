"""transformers' causal language models over tokcore's caches, for ``generate`` of either library.

Importing this module registers the attention function ``"tokcore"`` with transformers. A model whose attention is set
to it (``model.set_attn_implementation("tokcore")``) reads and writes a :class:`TokcoreCache`::

    cache = TokcoreCache.of(model, batch=1, capacity=4096, cache="int8")
    model.generate(input_ids, past_key_values=cache)

:class:`TransformersModel` is such a model for :func:`tokcore.speculative.generate`: any drafter, any cache.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from tokcore.ops import _checks as checks
from tokcore.ops._draft_checks import MOST_NODES
from tokcore.ops.decode_attention import decode_attention
from tokcore.ops.draft_candidates import Candidates
from tokcore.ops.kv_compact import kv_compact
from tokcore.quantized_kv_cache import QuantizedKVCache
from tokcore.speculative.model import PLAIN_FORMATS, CacheOptions, cache_options, top_of_logits
from tokcore.token_tree import TokenTree
from tokcore.verdict import Verdict

NAME = "tokcore"
_WRITTEN: ContextVar[TokcoreLayer | None] = ContextVar("tokcore_written_layer", default=None)
"""The layer whose keys and values were appended last: the attention that follows reads it."""


class TokcoreLayer(CacheLayerMixin):
    """One layer of a :class:`TokcoreCache`."""

    def __init__(self, cache: TokcoreCache, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache, self.index = cache, index
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Everything was allocated when the cache was made."""

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Appends [B, Hkv, T, D]; returns what is new: the rest is read where it lies."""
        kv = self.cache.kv
        tree = self.cache.tree
        counts = None if tree is None else tree.counts
        # A tree comes from a session, which has room for it: then nobody waits for a GPU to look.
        validate = tree is None or kv.device.type == "cpu"
        kv.append(self.index, key_states.transpose(1, 2), value_states.transpose(1, 2), counts, validate=validate)
        _WRITTEN.set(self)
        return key_states, value_states

    def get_seq_length(self) -> int:
        """Tokens of the longest sequence; 0 while a tree is read, whose positions are given: no GPU is waited for."""
        if self.cache.tree is not None:
            return 0
        return int(self.cache.kv.layer(self.index).lengths.max())

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of a mask; none is made."""
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        """Capacity of a sequence."""
        return self.cache.kv.capacity

    def reset(self) -> None:
        """Empties every layer: they share their sequences."""
        self.cache.kv.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Not supported: raises NotImplementedError."""
        raise NotImplementedError(
            checks.message("integrations.transformers", "num_beams", "1 (no beam search)", f"{beam_idx.numel()} rows")
        )


class TokcoreCache(Cache):
    """transformers' view of a :class:`tokcore.QuantizedKVCache`, for models whose attention is ``"tokcore"``."""

    def __init__(self, kv: QuantizedKVCache) -> None:
        self.kv = kv
        self.tree: TokenTree | None = None  # what the tokens of the next forward pass are; None: a text
        super().__init__(layers=[TokcoreLayer(self, index) for index in range(kv.layers)])

    @classmethod
    def of(cls, model: PreTrainedModel, batch: int, capacity: int, cache: CacheOptions = None) -> TokcoreCache:
        """A cache for a model: a preset's name, options of QuantizedKVCache, or None for the model's dtype."""
        config = model.config.get_text_config(decoder=True)
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        sizes: tuple[int, int, int, int, int] = (config.num_hidden_layers, batch, heads, head_dim, capacity)
        where: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
        if isinstance(cache, str):
            return cls(QuantizedKVCache.from_preset(cache, *sizes, **where))
        options: dict[str, Any] = {**cache_options(cache, model.dtype, capacity), **where}
        return cls(QuantizedKVCache(*sizes, **options))


def tokcore_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,  # noqa: ARG001 - appended to the cache already
    value: Tensor,  # noqa: ARG001
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: query [B, H, M, D] over the layer just written, out [B, M, H, D]."""
    require = checks.wrapper_require("integrations.transformers")
    layer = _WRITTEN.get()
    _WRITTEN.set(None)
    fits = layer is not None and layer.index == getattr(module, "layer_idx", None)
    require(fits, "past_key_values", lambda: "a TokcoreCache (attention 'tokcore' reads no other)", lambda: "another")
    assert layer is not None
    require(attention_mask is None, "attention_mask", lambda: "None", lambda: "a mask", NotImplementedError)
    training = dropout > 0.0 or (query.requires_grad and torch.is_grad_enabled())
    require(not training, "model", lambda: "one that is not trained", lambda: "dropout or grad", NotImplementedError)
    out = decode_attention(
        query.transpose(1, 2),
        layer.cache.kv,
        layer.index,
        scale=scaling,
        softcap=softcap,
        window=sliding_window,
        tree=layer.cache.tree,
    )
    assert isinstance(out, Tensor)
    return out, None


def _no_mask(*, attention_mask: Tensor | None = None, **_: Any) -> None:
    """Masks are implied by the cache; one that hides tokens would be ignored, so it is refused."""
    hides = attention_mask is not None and not bool(attention_mask.bool().all())
    checks.wrapper_require("integrations.transformers")(
        not hides, "attention_mask", lambda: "all ones (no padding)", lambda: "zeros", NotImplementedError
    )


AttentionInterface.register(NAME, tokcore_attention)
AttentionMaskInterface.register(NAME, _no_mask)


class TransformersModel:
    """A transformers causal language model as :func:`tokcore.speculative.generate` takes one.

    Args:
        model: in evaluation; its attention is set to ``"tokcore"``, for as long as it lives.

    Raises:
        NotImplementedError: a model in float64 or another dtype that no cache has.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        require = checks.wrapper_require("integrations.TransformersModel")
        known = model.dtype in PLAIN_FORMATS
        names = " or ".join(checks.dtype_name(dtype) for dtype in PLAIN_FORMATS)
        require(known, "model", lambda: f"dtype {names}", lambda: checks.dtype_name(model.dtype), NotImplementedError)
        model.train(False)
        model.set_attn_implementation(NAME)
        self.model = model
        self.vocab_size: int = model.config.get_text_config(decoder=True).vocab_size

    @property
    def device(self) -> torch.device:
        """Where prompts that are lists go."""
        return self.model.device

    def session(self, batch: int, capacity: int, cache: CacheOptions = None) -> TransformersSession:
        """A session with a cache of its own."""
        return TransformersSession(self, TokcoreCache.of(self.model, batch, capacity, cache))


class TransformersSession:
    """See :class:`tokcore.speculative.Session`."""

    def __init__(self, owner: TransformersModel, cache: TokcoreCache) -> None:
        self._model, self._cache, self.vocab_size = owner.model, cache, owner.vocab_size

    @property
    def lengths(self) -> Tensor:
        """Tokens in the cache, int32 [B]."""
        return self._cache.kv.lengths

    def append(self, tokens: Tensor, lengths: Tensor) -> None:
        """Prompts as chains, a piece at a time: rows of a chain may end early."""
        for start in range(0, tokens.size(1), MOST_NODES):
            piece = tokens[:, start : start + MOST_NODES].contiguous()
            counts = (lengths - start).clamp(0, piece.size(1)).to(torch.int32)
            self.forward(TokenTree.chain(piece, counts, validate=False))

    @torch.no_grad()
    def forward(self, tree: TokenTree) -> Tensor:
        """Hidden states of the nodes [B, N, C]."""
        positions = tree.positions(self.lengths).to(torch.int64)
        self._cache.tree = tree
        try:
            out = self._model.base_model(
                input_ids=tree.tokens, position_ids=positions, past_key_values=self._cache, use_cache=True
            )
        finally:
            self._cache.tree = None
        hidden: Tensor = out.last_hidden_state
        return hidden

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """[..., V] by the model's head; its softcap where it has one."""
        classifier: Any = self._model.get_output_embeddings()  # type: ignore[no-untyped-call]
        head: Tensor = classifier(hidden)
        softcap = getattr(self._model.config.get_text_config(decoder=True), "final_logit_softcapping", None)
        return head if softcap is None else softcap * torch.tanh(head / softcap)

    def top(self, hidden: Tensor, k: int) -> Candidates:
        """From the logits."""
        return top_of_logits(self, hidden, k)

    def compact(self, tree: TokenTree, verdict: Verdict) -> None:
        """In all layers at once."""
        kv_compact(self._cache.kv, verdict, tree)
