"""``sample``, ``draft_samples``, ``verify_tree_sample``, ``verify_tree_greedy`` and ``tree_links`` on their CUDA
kernels, executed on the CPU: functions with the operators' signatures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from kv_simt import Arrays, dtype_name
from simt_support import simt
from torch import Tensor

from tokcore.ops._sampling_checks import SETTINGS
from tokcore.ops._tree_checks import RULES
from tokcore.ops.draft_samples import CHILDREN

_DEFAULTS = {name: value for name, (value, _, _) in SETTINGS.items()}
STATUS = "status"


def _rows(arrays: Arrays, logits: Tensor, seeds: Tensor, positions: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "dtype": dtype_name(logits.dtype),
        "logits": arrays.rows(logits, "logits"),
        "stride_request": logits.stride(0),
        "stride_node": logits.stride(1) if logits.dim() == 3 else 0,
        "num_requests": logits.size(0),
        "num_nodes": logits.size(1) if logits.dim() == 3 else 1,
        "vocab_size": logits.size(-1),
        "seeds": arrays.give(seeds, "seeds"),
        "positions": arrays.give(positions, "positions"),
        "settings": [float(options.pop(name, value)) for name, value in _DEFAULTS.items()],
    }
    for name in ("per_request", "token_counts", "allowed_bits"):
        tensor = options.pop(name, None)
        if tensor is not None:
            fields[name] = arrays.give(tensor, name)
    return fields


def _raise(op: str, status: Tensor, validate: bool) -> None:
    """What the entry reads back and turns into words, here into its codes."""
    for request, (code, node) in enumerate(status.tolist()):
        if validate and code:
            raise RuntimeError(f"tokcore.{op}: status {code} at node {node} of request {request}")


def sample(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    return_entropy: bool = False,
    validate: bool = True,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """``tokcore::sample``."""
    B, arrays = logits.size(0), Arrays()
    numbers = B if return_entropy else 0
    token, token_at = arrays.take((B,), torch.int64, "token")
    logprob, logprob_at = arrays.take((B,), torch.float32, "logprob")
    entropy, entropy_at = arrays.take((numbers,), torch.float32, "entropy")
    varentropy, varentropy_at = arrays.take((numbers,), torch.float32, "varentropy")
    status, status_at = arrays.take((B, 2), torch.int32, STATUS)
    if B > 0:
        fields = _rows(arrays, logits, seeds, positions, options)
        fields |= {"wants_entropy": return_entropy, "tokens": token_at, "logprobs": logprob_at, STATUS: status_at}
        simt.sample({**fields, "entropies": entropy_at, "varentropies": varentropy_at})
        _raise("sample", status, validate)
    return token.clone(), logprob.clone(), entropy.clone(), varentropy.clone(), status.clone()


def draft_samples(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    k: int,
    *,
    children: str = "coupled",
    validate: bool = True,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``tokcore::draft_samples``."""
    (R, V), arrays = logits.shape, Arrays()
    tokens, tokens_at = arrays.take((R, k), torch.int32, "tokens")
    probs, probs_at = arrays.take((R, k), torch.float32, "probs")
    q, q_at = arrays.take((0 if children == "coupled" else R, V), torch.float32, "draft_probs")
    status, status_at = arrays.take((R, 2), torch.int32, STATUS)
    if R > 0:
        fields = _rows(arrays, logits, seeds, positions, options)
        fields |= {"children": CHILDREN.index(children), "k": k, "tokens": tokens_at, "probs": probs_at}
        fields |= {STATUS: status_at} if children == "coupled" else {STATUS: status_at, "draft_probs": q_at}
        simt.draft_samples(fields)
        _raise("draft_samples", status, validate)
    return tokens.clone(), probs.clone(), q.clone(), status.clone()


def _verify(
    op: str, other: Tensor, arrays: Arrays, fields: dict[str, Any], tree: dict[str, Tensor], validate: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    B, N = other.shape[:2]
    nodes, nodes_at = arrays.take((B, N), torch.int32, "accepted_nodes")
    counts, counts_at = arrays.take((B,), torch.int32, "accepted_counts")
    token, token_at = arrays.take((B,), torch.int64, "next_token")
    status, status_at = arrays.take((B, 2), torch.int32, STATUS)
    if B > 0:
        fields |= {name: arrays.give(value, name) for name, value in tree.items()}
        fields |= {"accepted_nodes": nodes_at, "accepted_counts": counts_at, "next_tokens": token_at}
        fields[STATUS] = status_at
        simt.verify_tree(fields, arrays.workspace(simt.verify_tree_workspace(fields)))
        _raise(op, status, validate)
    return nodes.clone(), counts.clone(), token.clone(), status.clone()


def verify_tree_sample(
    logits: Tensor,
    tokens: Tensor,
    parents: Tensor,
    counts: Tensor,
    first_child: Tensor,
    next_sibling: Tensor,
    seeds: Tensor,
    positions: Tensor,
    draft_probs: Tensor | None = None,
    *,
    rule: str = "coupled",
    lossless: bool = True,
    typical_epsilon: float = 0.3,
    typical_alpha: float = 0.09,
    rows: str = "auto",
    validate: bool = True,
    **options: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``tokcore::verify_tree_sample``."""
    arrays = Arrays()
    fields = _rows(arrays, logits, seeds, positions, options) if logits.size(0) else {}
    fields |= {"rule": RULES.index(rule), "lossless": lossless, "rows_at_once": rows == "all"}
    fields |= {"typical_epsilon": typical_epsilon, "typical_alpha": typical_alpha}
    if draft_probs is not None:
        fields["draft_probs"] = arrays.rows(draft_probs, "draft_probs")
        fields["stride_draft_request"], fields["stride_draft_node"] = draft_probs.stride()[:2]
    tree = {"tree_tokens": tokens, "parents": parents, "counts": counts, "first_child": first_child}
    tree["next_sibling"] = next_sibling
    return _verify("verify_tree_sample", logits, arrays, fields, tree, validate)


def verify_tree_greedy(
    logits: Tensor | None,
    target_tokens: Tensor | None,
    tokens: Tensor,
    parents: Tensor,
    counts: Tensor,
    first_child: Tensor,
    next_sibling: Tensor,
    *,
    validate: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``tokcore::verify_tree_greedy``."""
    arrays = Arrays()
    tree = {"tree_tokens": tokens, "parents": parents, "counts": counts, "first_child": first_child}
    tree["next_sibling"] = next_sibling
    greedy = [0.0 if name == "temperature" else value for name, value in _DEFAULTS.items()]
    fields: dict[str, Any] = {"rule": 0, "lossless": True, "settings": greedy}
    if logits is None:
        assert target_tokens is not None
        fields |= {"num_requests": tokens.size(0), "num_nodes": tokens.size(1), "vocab_size": 2**63 - 1}
        fields["target_tokens"] = arrays.give(target_tokens, "target_tokens")
        return _verify("verify_tree_greedy", target_tokens, arrays, fields, tree, validate)
    fields |= {"dtype": dtype_name(logits.dtype), "logits": arrays.rows(logits, "logits")}
    fields |= {"stride_request": logits.stride(0), "stride_node": logits.stride(1), "vocab_size": logits.size(2)}
    fields |= {"num_requests": logits.size(0), "num_nodes": logits.size(1)}
    return _verify("verify_tree_greedy", logits, arrays, fields, tree, validate)


def tree_links(parents: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``tokcore::tree_links``."""
    (B, N), arrays = parents.shape, Arrays()
    words, words_at = arrays.take((B, N, (N + 63) // 64), torch.int64, "ancestor_words")
    outputs = {name: arrays.take((B, N), torch.int32, name) for name in ("depths", "first_child", "next_sibling")}
    if B > 0:
        fields = {name: at for name, (_, at) in outputs.items()}
        fields |= {"parents": arrays.give(parents, "parents"), "counts": arrays.give(counts, "counts")}
        simt.tree_links({**fields, "ancestors": words_at, "num_trees": B, "num_nodes": N})
    depths, first, following = (array.clone() for array, _ in outputs.values())
    return words.clone(), depths, first, following


OPERATORS = {
    "sample": sample,
    "draft_samples": draft_samples,
    "verify_tree_sample": verify_tree_sample,
    "verify_tree_greedy": verify_tree_greedy,
    "tree_links": tree_links,
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
