"""Named schemes of a KV cache, each with its paper and its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokcore.ops import _checks as checks


@dataclass(frozen=True)
class KVPreset:
    """A scheme: what :class:`tokcore.QuantizedKVCache` is made with, and how tokens are sorted between its tiers."""

    name: str
    paper: str
    note: str
    options: Mapping[str, Any]  # of QuantizedKVCache
    retier: Mapping[str, float] = field(default_factory=dict)  # of kv_retier; empty: a single tier


KV_PRESETS: dict[str, KVPreset] = {
    preset.name: preset
    for preset in (
        KVPreset(
            "mikv",
            "MiKV, arXiv 2402.18096",
            "important tokens in INT8, the others kept in INT2; keys divided by 1/b of kv_balancer()",
            {"high": "int8", "low": "int2", "high_ratio": 0.25},
            {"ratio": 0.2},
        ),
        KVPreset(
            "zipcache",
            "ZipCache, arXiv 2405.14256",
            "salient tokens in INT4, the others in INT2, by token; values divided by kv_channel_scale()",
            {"high": "int4", "low": "int2", "high_ratio": 0.65},
            {"ratio": 0.6},
        ),
        KVPreset(
            "zipvl",
            "ZipVL, arXiv 2410.08584",
            "as many tokens in INT4 as hold 97.5 % of the attention, the others in INT2",
            {"high": "int4", "low": "int2", "high_ratio": 0.75},
            {"mass": 0.975},
        ),
        KVPreset(
            "kivi",
            "KIVI, arXiv 2402.02750",
            "INT2: keys by channel in groups of 32 tokens, values by token in groups of 32 channels",
            {"high": "int2", "low": None, "k_axis": "channel", "group": 32, "v_group": 32, "sinks": 0},
        ),
        KVPreset("int8", "rounding to nearest", "8 bits by token", {"high": "int8", "low": None}),
        KVPreset("int4", "rounding to nearest", "4 bits by token", {"high": "int4", "low": None}),
        KVPreset(
            "streaming",
            "StreamingLLM, arXiv 2309.17453",
            "sinks and the last tokens alone; what leaves the window is dropped",
            {"high": None, "low": None, "page_size": 16, "residual": 1008, "sinks": 4},
        ),
    )
}


def find_preset(op: str, name: object) -> KVPreset:
    """The preset called ``name``; ValueError lists the known ones."""
    checks.check_choice(checks.wrapper_require(op), "preset", name, tuple(KV_PRESETS))
    return KV_PRESETS[str(name)]


def _per_head_maximum(x: Tensor) -> Tensor:
    """max |x| over batch and tokens of [B, T, H, D], float32 [H, D]; channels of zeros count as 1."""
    found = x.abs().amax(dim=(0, 1)).float()
    return torch.where(found > 0, found, 1.0)


def kv_balancer(q: Tensor, k: Tensor) -> Tensor:
    """MiKV's balancer as a channel scale of keys: 1/b with b = sqrt(max|q|/max|k|) per head of keys and channel.

    q [B, T, H, D] and k [B, T, Hkv, D] of a prompt; returns float32 [Hkv, D], for ``k_channel_scale``.
    """
    heads = k.size(2)
    q_most = _per_head_maximum(q).reshape(heads, -1, q.size(-1)).amax(1)
    return (_per_head_maximum(k) / q_most).sqrt()


def kv_channel_scale(x: Tensor) -> Tensor:
    """ZipCache's channel scale sqrt(max|x|) per head and channel of x [B, T, Hkv, D]; float32 [Hkv, D]."""
    return _per_head_maximum(x).sqrt()
