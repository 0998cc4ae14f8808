"""The acts after the first, in the order in which they are played."""

from __future__ import annotations

from tokcore.demo.act import Act
from tokcore.demo.kv_cache.play import play as play_kv_cache

ACTS: tuple[Act, ...] = (play_kv_cache,)
