"""The acts after the first, in the order in which they are played."""

from __future__ import annotations

from tokcore.demo.act import Act
from tokcore.demo.kv_cache.play import play as play_kv_cache
from tokcore.demo.sparse_attention.play import play as play_sparse_attention
from tokcore.demo.token_trees.play import play as play_token_trees

ACTS: tuple[Act, ...] = (
    play_sparse_attention,
    play_kv_cache,
    play_token_trees,
)
