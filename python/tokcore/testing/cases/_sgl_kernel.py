"""sgl-kernel as a peer on a GPU: its trees and their verification; imported when it is timed, never before."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.testing.cases._sources import not_importable
from tokcore.testing.table import Case, Inputs

unavailable = not_importable("sgl_kernel")


def _links(parents: Tensor, counts: Tensor) -> list[Tensor]:
    """Numbers of the nodes in the flattened batch, first children and next siblings, int64 [B, N], -1 for none."""
    _, _, first, sibling = torch.ops.tokcore.tree_links(parents, counts)
    numbers = torch.arange(parents.numel(), device=parents.device).view_as(parents)
    return [numbers, first.long(), sibling.long()]


def build(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """Links and positions from a mask of the tree, which it wants in place of parents."""
    parents, counts = inputs["parents"], inputs["counts"]
    (B, N), device = parents.shape, parents.device
    tokens = torch.zeros(B, N, dtype=torch.int64, device=device)
    mask = tokcore.TokenTree(parents, tokens, counts).mask().flatten()
    lengths = torch.full((B,), 1024, dtype=torch.int64, device=device)
    found = [torch.full((B * N,), -1, dtype=torch.int64, device=device)]
    found += [torch.full((B, N), -1, dtype=torch.int64, device=device) for _ in range(3)]
    call = importlib.import_module("sgl_kernel").reconstruct_indices_from_tree_mask
    return lambda: call(mask, lengths, *found, B, N)


def _verdict(tokens: Tensor) -> list[Tensor]:
    """Room for its answers: a token after each node, the accepted nodes and how many."""
    sizes = [(tokens.numel(),), tuple(tokens.shape), (tokens.size(0),)]
    return [torch.full(size, -1, dtype=torch.int32, device=tokens.device) for size in sizes]


def greedy(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """The argmax of the logits, then the walk along the tree."""
    tokens = inputs["tokens"]
    links = _links(inputs["parents"], inputs["counts"])
    answers = _verdict(tokens)
    call = importlib.import_module("sgl_kernel").verify_tree_greedy
    return lambda: call(*answers, tokens, *links, inputs["logits"].argmax(-1))


def sample(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """Probabilities of all nodes, which it wants in float32, then the walk along the tree by its target-only rule."""
    logits, tokens = inputs["logits"], inputs["tokens"]
    links = _links(inputs["parents"], inputs["counts"])
    answers = _verdict(tokens)
    uniform, last = torch.rand(tokens.shape, device=tokens.device), torch.rand(tokens.size(0), device=tokens.device)
    drafts = torch.zeros(logits.shape, device=logits.device)
    call = importlib.import_module("sgl_kernel").tree_speculative_sampling_target_only

    def timed() -> None:
        call(*answers, tokens, *links, uniform, last, torch.softmax(logits.float(), -1), drafts)

    return timed
