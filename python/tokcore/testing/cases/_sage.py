"""SageAttention and SpargeAttn as peers on a GPU: 8-bit attention, dense and by blocks; imported when timed."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch

from tokcore.testing.cases._sources import not_importable
from tokcore.testing.table import Case, Inputs

no_sage, no_sparge = not_importable("sageattention"), not_importable("spas_sage_attn")


def dense(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """Quantization and attention over every block."""
    q, k, v = (inputs[name] for name in "qkv")
    call = importlib.import_module("sageattention").sageattn
    return lambda: call(q, k, v, tensor_layout="HND", is_causal=False)


def sparse(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """Quantization and attention over the blocks that hold a kept one: its own are 128×64, on Hopper 64×128."""
    q, k, v = (inputs[name] for name in "qkv")
    rows = 1 if torch.cuda.get_device_capability(q.device)[0] == 9 else 2
    merged = (rows, 3 - rows)
    kept = inputs["block_mask"].to_dense().expand(*q.shape[:2], -1, -1).float()
    wide = torch.nn.functional.max_pool2d(kept, merged, ceil_mode=True).to(torch.int8)
    call = importlib.import_module("spas_sage_attn").block_sparse_sage2_attn_cuda
    return lambda: call(q, k, v, mask_id=wide, tensor_layout="HND", output_dtype=q.dtype)
