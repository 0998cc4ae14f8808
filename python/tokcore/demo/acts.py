"""The acts after the first, in the order in which they are played."""

from __future__ import annotations

from tokcore.demo.act import Act

ACTS: tuple[Act, ...] = ()
