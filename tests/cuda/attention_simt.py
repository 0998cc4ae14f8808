"""The attention family's operators on their CUDA kernels, executed on the CPU: functions with the same signatures.

They allocate as the torch-facing entries do, with every array between inaccessible pages and everything that is not an
input poisoned.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from linear_logprobs_simt import SETUP as SETUP
from linear_logprobs_simt import Arrays
from simt_support import simt
from torch import Tensor

from tokcore.ops.attention_block_scores import STATISTICS


def give_heads(arrays: Arrays, name: str, tensor: Tensor) -> None:
    """A tensor [B, heads, rows, D] with its strides: the storage that the view spans, from its first element on."""
    strides = tensor.stride()
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, strides, strict=True))
    flat = tensor.detach().as_strided((span,), (1,)) if tensor.numel() else tensor.detach().reshape(-1)
    arrays.give(name, flat)
    arrays.fields[f"{name}_strides"] = dict(zip(("batch", "head", "row"), strides, strict=False))


def give_shape(arrays: Arrays, q: Tensor, k: Tensor) -> None:
    arrays.fields |= {
        "dtype": str(q.dtype).removeprefix("torch."),
        "batch": q.size(0),
        "num_heads": q.size(1),
        "num_kv_heads": k.size(1),
        "query_length": q.size(2),
        "key_length": k.size(2),
        "head_dim": q.size(3),
    }


def give_attention(
    arrays: Arrays, q: Tensor, k: Tensor, v: Tensor, bits: Tensor, block_m: int, block_n: int, **options: Any
) -> None:
    give_shape(arrays, q, k)
    for name, tensor in {"q": q, "k": k, "v": v}.items():
        give_heads(arrays, name, tensor)
    give_mask(arrays, bits, block_m, block_n)
    arrays.fields |= options


def give_mask(arrays: Arrays, bits: Tensor, block_m: int, block_n: int) -> None:
    """Bits of 1 or B batch entries and 1 or H heads."""
    arrays.give("mask_bits", bits)
    row, head = bits.size(3), bits.size(2) * bits.size(3)
    arrays.fields |= {
        "mask_stride_batch": 0 if bits.size(0) == 1 else bits.size(1) * head,
        "mask_stride_head": 0 if bits.size(1) == 1 else head,
        "mask_stride_row": row,
        "block_m": block_m,
        "block_n": block_n,
    }


def run(params: Any, arrays: Arrays) -> None:
    simt.run(params, SETUP.machine, arrays.workspace(simt.workspace(params, SETUP.machine)))


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask_bits: Tensor,
    block_m: int,
    block_n: int,
    *,
    scale: float,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    """``tokcore::block_sparse_attention_forward``."""
    arrays = Arrays()
    give_attention(arrays, q, k, v, mask_bits.contiguous(), block_m, block_n, scale=scale, causal=causal)
    out = arrays.take("out", tuple(q.shape), q.dtype)
    lse = arrays.take("lse", tuple(q.shape[:3]), torch.float32)
    if out.numel():
        run(simt.BlockSparseAttentionForward(arrays.fields), arrays)
    return out.clone(), lse.clone()


def backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask_bits: Tensor,
    block_m: int,
    block_n: int,
    grad_lse: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    need_q: bool = True,
    need_k: bool = True,
    need_v: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """``tokcore::block_sparse_attention_backward``."""
    arrays = Arrays()
    give_attention(arrays, q, k, v, mask_bits.contiguous(), block_m, block_n, scale=scale, causal=causal)
    give_heads(arrays, "grad_out", grad_out)
    give_heads(arrays, "out", out)
    arrays.give("lse", lse.contiguous())
    arrays.give("grad_lse", None if grad_lse is None else grad_lse.contiguous())
    gradients = []
    for name, like, needed in (("grad_q", q, need_q), ("grad_k", k, need_k), ("grad_v", v, need_v)):
        wanted = needed and like.numel() > 0
        gradients.append(arrays.take(name, tuple(like.shape), like.dtype) if wanted else like.new_empty(0))
        if needed and not wanted:
            gradients[-1] = torch.empty_like(like)
    if any(gradient.numel() for gradient in gradients):
        run(simt.BlockSparseAttentionBackward(arrays.fields), arrays)
    return gradients[0].clone(), gradients[1].clone(), gradients[2].clone()


def block_scores(
    q: Tensor,
    k: Tensor,
    block_m: int,
    block_n: int,
    *,
    scale: float,
    causal: bool = False,
    stat: str = "sum",
    threshold: float = 1e-3,
) -> Tensor:
    """``tokcore::attention_block_scores``."""
    arrays = Arrays()
    give_shape(arrays, q, k)
    give_heads(arrays, "q", q)
    give_heads(arrays, "k", k)
    arrays.fields |= {"block_m": block_m, "block_n": block_n, "scale": scale, "causal": causal, "threshold": threshold}
    arrays.fields["statistic"] = STATISTICS.index(stat)
    shape = (q.size(0), q.size(1), -(-q.size(2) // block_m), -(-k.size(2) // block_n))
    scores = arrays.take("scores", shape, torch.float32)
    if scores.numel():
        run(simt.AttentionBlockScores(arrays.fields), arrays)
    return scores.clone()


@contextmanager
def in_place_of_the_cpu() -> Iterator[None]:
    """The operators run these functions for CPU tensors, and so do the public functions and their gradients."""
    library = torch.library.Library("tokcore", "IMPL")
    try:
        for name, function in {
            "block_sparse_attention_forward": forward,
            "block_sparse_attention_backward": backward,
            "attention_block_scores": block_scores,
        }.items():
            library.impl(name, function, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()
