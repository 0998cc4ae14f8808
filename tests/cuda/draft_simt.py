"""The draft builders on their CUDA kernels, executed on the CPU: functions with the operators' signatures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from kv_simt import Arrays, dtype_name
from simt_support import simt
from torch import Tensor


class _Trees:
    """Poisoned outputs of a builder."""

    def __init__(self, arrays: Arrays, B: int, N: int) -> None:
        self.parents, parents = arrays.take((B, N), torch.int32, "parents")
        self.tokens, tokens = arrays.take((B, N), torch.int64, "tokens")
        self.counts, counts = arrays.take((B,), torch.int32, "counts")
        self.fields: dict[str, Any] = {"tree_parents": parents, "tree_tokens": tokens, "tree_counts": counts}
        self.fields |= {"max_nodes": N, "num_requests": B}

    def outputs(self, *others: Tensor) -> tuple[Tensor, ...]:
        return tuple(part.clone() for part in (self.parents, self.tokens, self.counts, *others))


def _given(arrays: Arrays, **tensors: Tensor) -> dict[str, Any]:
    return {name: arrays.give(tensor, name) for name, tensor in tensors.items()}


def _run(arrays: Arrays, params: Any) -> None:
    simt.run(params, arrays.workspace(simt.workspace(params)))
    arrays.finish()


def draft_candidates(logits: Tensor, k: int, *, temperature: float = 1.0, probs: bool = True) -> tuple[Tensor, Tensor]:
    """``tokcore::draft_candidates``."""
    R, arrays = logits.size(0), Arrays()
    tokens, tokens_at = arrays.take((R, k), torch.int32, "tokens")
    weights, weights_at = arrays.take((R if probs else 0, k), torch.float32, "probs")
    if R > 0:
        fields: dict[str, Any] = {
            "dtype": dtype_name(logits.dtype),
            "logits": arrays.rows(logits, "logits"),
            "stride_row": logits.stride(0),
            "num_rows": R,
            "vocab_size": logits.size(1),
            "k": k,
            "temperature": temperature,
            "tokens": tokens_at,
        }
        simt.draft_candidates({**fields, "probs": weights_at} if probs else fields)
    return tokens.clone(), weights.clone()


def draft_ngram(
    history: Tensor,
    lengths: Tensor,
    budgets: Tensor,
    *,
    max_nodes: int,
    longest: int = 3,
    shortest: int = 1,
    max_depth: int = 8,
) -> tuple[Tensor, ...]:
    """``tokcore::draft_ngram``."""
    arrays = Arrays()
    trees = _Trees(arrays, history.size(0), max_nodes)
    if history.size(0) > 0:
        fields = trees.fields | _given(arrays, history=history, lengths=lengths, budgets=budgets)
        fields |= {"row_length": history.size(1), "longest": longest, "shortest": shortest, "max_depth": max_depth}
        simt.draft_ngram(fields)
    return trees.outputs()


def draft_heap(
    candidates: Tensor,
    probs: Tensor,
    asked_parents: Tensor,
    asked_ranks: Tensor,
    asked_counts: Tensor,
    roots: Tensor,
    budgets: Tensor,
    *,
    max_nodes: int,
    value: str = "residual",
    threshold: float = 0.0,
) -> tuple[Tensor, ...]:
    """``tokcore::draft_heap``."""
    arrays, (B, M, K) = Arrays(), candidates.shape
    trees = _Trees(arrays, B, max_nodes)
    joint, joint_at = arrays.take((B, max_nodes), torch.float32, "joint")
    sources, sources_at = arrays.take((B, max_nodes), torch.int32, "sources")
    if B > 0:
        given = {"candidates": candidates, "probs": probs, "asked_parents": asked_parents, "asked_ranks": asked_ranks}
        fields = trees.fields | _given(arrays, **given, asked_counts=asked_counts, roots=roots, budgets=budgets)
        fields |= {"num_asked": M, "num_candidates": K, "takes_joint": value == "joint", "threshold": threshold}
        simt.draft_heap({**fields, "joint": joint_at, "sources": sources_at})
    return trees.outputs(joint, sources)


def draft_recycling(
    adjacency: Tensor, roots: Tensor, budgets: Tensor, template_parents: Tensor, template_ranks: Tensor
) -> tuple[Tensor, ...]:
    """``tokcore::draft_recycling``."""
    arrays = Arrays()
    trees = _Trees(arrays, roots.size(0), template_parents.size(0))
    if roots.size(0) > 0:
        fields = trees.fields | _given(arrays, adjacency=adjacency, roots=roots, budgets=budgets)
        fields |= _given(arrays, template_parents=template_parents, template_ranks=template_ranks)
        fields |= {"num_successors": adjacency.size(1), "vocab_size": adjacency.size(0)}
        simt.draft_recycling({**fields, "template_nodes": template_parents.size(0)})
    return trees.outputs()


def draft_recycling_update(adjacency: Tensor, ids: Tensor, candidates: Tensor) -> None:
    """``tokcore::draft_recycling_update``."""
    arrays = Arrays()
    fields: dict[str, Any] = _given(arrays, ids=ids, candidates=candidates)
    fields |= {"num_rows": ids.size(0), "num_successors": adjacency.size(1), "vocab_size": adjacency.size(0)}
    _run(arrays, simt.DraftRecyclingUpdate({**fields, "adjacency": arrays.change(adjacency, "adjacency")}))


def draft_trigram(
    keys: Tensor,
    successors: Tensor,
    probs: Tensor,
    previous: Tensor,
    roots: Tensor,
    budgets: Tensor,
    *,
    vocab_size: int,
    max_nodes: int,
    simulations: int,
    max_depth: int = 8,
    exploration: float = 1.0,
) -> tuple[Tensor, ...]:
    """``tokcore::draft_trigram``."""
    arrays = Arrays()
    trees = _Trees(arrays, roots.size(0), max_nodes)
    joint, joint_at = arrays.take((roots.size(0), max_nodes), torch.float32, "joint")
    if roots.size(0) > 0:
        fields = trees.fields | _given(arrays, keys=keys, successors=successors, table_probs=probs)
        fields |= _given(arrays, previous=previous, roots=roots, budgets=budgets)
        fields |= {"num_slots": keys.size(0), "num_successors": successors.size(1), "vocab_size": vocab_size}
        fields |= {"simulations": simulations, "max_depth": max_depth, "exploration": exploration, "joint": joint_at}
        _run(arrays, simt.DraftTrigram(fields))
    return trees.outputs(joint)


def draft_trigram_update(
    keys: Tensor, successors: Tensor, probs: Tensor, contexts: Tensor, candidates: Tensor, candidate_probs: Tensor
) -> None:
    """``tokcore::draft_trigram_update``."""
    arrays = Arrays()
    table = {"keys": keys, "successors": successors, "table_probs": probs}
    fields: dict[str, Any] = {name: arrays.change(tensor, name) for name, tensor in table.items()}
    fields |= _given(arrays, contexts=contexts, candidates=candidates, candidate_probs=candidate_probs)
    fields |= {"num_slots": keys.size(0), "num_successors": successors.size(1), "num_rows": contexts.size(0)}
    _run(arrays, simt.DraftTrigramUpdate(fields))


OPERATORS = {
    "draft_candidates": draft_candidates,
    "draft_ngram": draft_ngram,
    "draft_heap": draft_heap,
    "draft_recycling": draft_recycling,
    "draft_recycling_update": draft_recycling_update,
    "draft_trigram": draft_trigram,
    "draft_trigram_update": draft_trigram_update,
}


@contextmanager
def in_place_of_the_cpu() -> Iterator[None]:
    """The operators run these functions for CPU tensors, and so do the public functions."""
    library = torch.library.Library("tokcore", "IMPL")
    try:
        for name, function in OPERATORS.items():
            library.impl(name, function, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()
