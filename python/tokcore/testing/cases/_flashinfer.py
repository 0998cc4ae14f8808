"""FlashInfer as a peer on a GPU, over pages of 64 tokens; imported when it is timed, never before."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokcore.testing.cases._sources import not_importable
from tokcore.testing.table import Case, Inputs

PAGE = 64
_WORKSPACE_BYTES = 256 << 20
Prepare = Callable[[Case, Inputs], Callable[[], Any]]

unavailable = not_importable("flashinfer")


def _flashinfer() -> Any:
    return importlib.import_module("flashinfer")


def _workspace(device: torch.device) -> Tensor:
    return torch.empty(_WORKSPACE_BYTES, dtype=torch.uint8, device=device)


def _pages(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x [B, L, Hkv, D] as [B·L/64, Hkv, 64, D]; L is a multiple of 64."""
    return x.reshape(-1, PAGE, *x.shape[2:]).transpose(1, 2).to(dtype).contiguous()


def _page_lists(B: int, pages: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where each sequence's pages begin, their numbers, and the tokens of each last page."""
    starts = torch.arange(B + 1, dtype=torch.int32, device=device) * pages
    numbers = torch.arange(B * pages, dtype=torch.int32, device=device)
    return starts, numbers, torch.full((B,), PAGE, dtype=torch.int32, device=device)


def decode(dtype: torch.dtype) -> Prepare:
    """One query a sequence over keys and values of ``dtype``; those of 8 bits with a scale of 1."""

    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        q, k, v = inputs["q"], inputs["k"], inputs["v"]
        B, L, Hkv, D = k.shape
        pages = (_pages(k, dtype), _pages(v, dtype))
        wrapper = _flashinfer().BatchDecodeWithPagedKVCacheWrapper(_workspace(q.device), "HND", use_tensor_cores=True)
        lists = _page_lists(B, L // PAGE, q.device)
        wrapper.plan(*lists, q.size(2), Hkv, D, PAGE, q_data_type=q.dtype, kv_data_type=dtype)
        rows = q[:, 0].contiguous()
        return lambda: {"out": wrapper.run(rows, pages).unsqueeze(1)}

    return prepare


def tree(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """All nodes of every tree under a mask of nodes by tokens."""
    q, k, v = inputs["q"], inputs["k"], inputs["v"]
    (B, N, H, D), L, Hkv = q.shape, k.size(1), k.size(2)
    mask = torch.ones(B, N, L, dtype=torch.bool, device=q.device)
    mask[:, :, L - N :] = inputs["tree"].mask()
    wrapper = _flashinfer().BatchPrefillWithPagedKVCacheWrapper(_workspace(q.device), "HND")
    starts = torch.arange(B + 1, dtype=torch.int32, device=q.device) * N
    lists = _page_lists(B, L // PAGE, q.device)
    kinds = {"q_data_type": q.dtype, "kv_data_type": k.dtype}
    wrapper.plan(starts, *lists, H, Hkv, D, PAGE, custom_mask=mask.flatten(), **kinds)
    pages, rows = (_pages(k, k.dtype), _pages(v, v.dtype)), q.flatten(0, 1).contiguous()
    return lambda: {"out": wrapper.run(rows, pages).view(B, N, H, D)}


def append(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """One token a sequence, written at the end of its last page."""
    k, v = inputs["k"], inputs["v"]
    B, L = k.shape[:2]
    pages = (_pages(k, k.dtype), _pages(v, v.dtype))
    starts, numbers, last = _page_lists(B, L // PAGE, k.device)
    rows = torch.arange(B, dtype=torch.int32, device=k.device)
    positions = torch.full((B,), L - 1, dtype=torch.int32, device=k.device)
    new = [x[:, -1].contiguous() for x in (k, v)]
    call = _flashinfer().append_paged_kv_cache
    return lambda: call(*new, rows, positions, pages, numbers, starts, last, "HND")


def no_block_sparse(case: Case) -> str | None:
    """Why the block-sparse wrapper cannot take a case: its masks are per head of keys."""
    if case.parameters["H"] != case.parameters["Hkv"]:
        return "it takes a mask per head of keys"
    return unavailable(case)


def block_sparse(mask_name: str) -> Prepare:
    """Attention over the kept blocks of the BlockMask that the inputs hold under ``mask_name``; batches are heads."""

    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        q, k, v = (inputs[name].detach().flatten(0, 1) for name in "qkv")
        mask, heads, D = inputs[mask_name], q.size(0), q.size(2)
        kept = mask.to_dense().expand(*inputs["q"].shape[:2], -1, -1).flatten(0, 1).contiguous()
        sizes = [_block_sizes(mask.shape[axis], mask.block[axis], heads, q.device) for axis in (0, 1)]
        wrapper = _flashinfer().VariableBlockSparseAttentionWrapper(_workspace(q.device))
        wrapper.plan(kept, *sizes, heads, heads, D, q_data_type=q.dtype)
        return lambda: {"out": wrapper.run(q, k, v).view_as(inputs["q"])}

    return prepare


def _block_sizes(length: int, edge: int, heads: int, device: torch.device) -> Tensor:
    """int32 [heads, blocks]: tokens of each block, fewer in the last."""
    starts = torch.arange(0, length, edge, dtype=torch.int32, device=device)
    return (length - starts).clamp(max=edge).expand(heads, -1).contiguous()


def sample(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """A token for each row of logits, which it wants in float32."""
    call, logits = _flashinfer().sampling.sampling_from_logits, inputs["logits"]
    return lambda: call(logits.float())
