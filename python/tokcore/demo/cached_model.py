"""The demo's model over a KV cache: token by token, block by block, or node by node of a tree."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from tokcore.demo.model import Attention, Block, Linear, Transformer, apply_rope, rope_tables
from tokcore.ops.decode_attention import decode_attention
from tokcore.quantized_kv_cache import QuantizedKVCache

Observer = Callable[[int, Tensor, Tensor, Tensor], None]  # layer, q [B, T, H, D], k and v [B, T, Hkv, D]
Index = tuple[Tensor, Tensor]  # of the first two dimensions


class CacheFactory(Protocol):
    """Such as ``partial(QuantizedKVCache, batch=1, capacity=4096, high="int4", low=None)``."""

    def __call__(self, *, layers: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> QuantizedKVCache:
        """A cache for a model of these sizes."""


class CachedTransformer:
    """Runs a :class:`Transformer` over the tokens that are new; keys and values of the others come from ``cache``.

    The weights are copied once in the model's compute dtype: converting fp32 master weights in every step would take
    longer than the step. Training the model afterwards does not change the copy.
    """

    def __init__(self, model: Transformer, cache_factory: CacheFactory) -> None:
        config = model.config
        self.config = config
        self.model = copy.deepcopy(model).requires_grad_(False)
        for layer in self.model.modules():
            if isinstance(layer, Linear):
                layer.weight.data = layer.weight.data.to(model.compute_dtype)
        self.model.embedding.data = self.model.embedding.data.to(model.compute_dtype)
        self.cache = cache_factory(
            layers=config.num_layers,
            kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=model.compute_dtype,
        )
        self.observer: Observer | None = None  # sees what a call appends: saliency and balancers are made of it
        self._rope = rope_tables(self.cache.capacity, config.head_dim, config.rope_base)

    @torch.no_grad()
    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | Sequence[int] | None = None,
        positions: Tensor | None = None,
        **attention: Any,
    ) -> Tensor:
        """Appends ``tokens`` [B, T] int64 to the cache and returns their hidden states [B, T, C].

        Args:
            lengths: of row b only the first ``lengths[b]`` tokens count; the others' hidden states mean nothing.
            positions: int64 [B, T], the angle of the rotary embedding; by default cache length + index in the row, or
                + depth with a tree, whose ``counts`` are then the default of ``lengths``.
            attention: further arguments of :func:`tokcore.decode_attention`, such as ``window`` or ``tree``.

        Raises:
            ValueError: more tokens than the cache has room for (nothing is written then), a position outside it.
        """
        tree = attention.get("tree")
        if tree is not None and lengths is None:
            lengths = tree.counts
        if positions is None:
            starts = self.cache.lengths.to(torch.int64)
            # Rows end with the cache: what lies beyond is padding of a ragged row.
            most = self.cache.capacity - 1
            offsets = torch.arange(tokens.size(1)) if tree is None else tree.depths()
            positions = (starts[:, None] + offsets).clamp(max=most)
        rope = self._tables_at(positions)
        # The queries of a chain end with the cache; those of a tree are its nodes, from the first on.
        aligned = (
            None if lengths is None or tree is not None else _align_right(torch.as_tensor(lengths), tokens.size(1))
        )
        x = F.embedding(tokens, self.model.embedding)
        for index, block in enumerate(self.model.blocks):
            assert isinstance(block, Block)
            normed = block.attention_norm(x)
            x = x + self._attend(index, block.attention, normed, rope, lengths, aligned, attention)
            x = x + block.mlp(block.mlp_norm(x))
        return self.model.norm(x)  # type: ignore[no-any-return]

    __call__ = forward

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., C], in the compute dtype."""
        return F.linear(hidden, self.model.classifier())

    def _tables_at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin, each [B, 1, T, D/2]."""
        outside = (positions < 0) | (positions >= self.cache.capacity)
        if bool(outside.any()):
            raise ValueError(
                f"CachedTransformer: argument 'positions': expected values in [0, {self.cache.capacity}), "
                f"got {int(positions[outside][0])}"
            )
        cos, sin = (table[positions].unsqueeze(1) for table in self._rope)
        return cos, sin

    def _attend(
        self,
        layer: int,
        module: Attention,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        lengths: Tensor | Sequence[int] | None,
        aligned: tuple[Index, Index] | None,
        options: dict[str, Any],
    ) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (-1, self.config.head_dim)) for part in (module.query, module.key, module.value)
        )
        q, k = (apply_rope(part.transpose(1, 2), *rope).transpose(1, 2) for part in (q, k))
        if self.observer is not None:
            self.observer(layer, q, k, v)
        self.cache.append(layer, k, v, lengths)
        if aligned is not None:
            q = q[aligned[0]]
        mixed = decode_attention(q, self.cache, layer, **options)
        assert isinstance(mixed, Tensor)
        if aligned is not None:
            mixed = mixed[aligned[1]]
        return module.out(mixed.flatten(2))  # type: ignore[no-any-return]


def _align_right(lengths: Tensor, most: int) -> tuple[Index, Index]:
    """Indices that move each row's first ``lengths[b]`` of ``most`` tokens to its end, and back.

    decode_attention takes the last M tokens of a sequence for the queries' own.
    """
    rows, steps = torch.arange(lengths.numel())[:, None], torch.arange(most)
    shift = most - lengths.to(torch.int64)[:, None]
    return (rows, (steps - shift) % most), (rows, (steps + shift) % most)
