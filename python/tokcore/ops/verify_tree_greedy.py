"""``verify_tree_greedy``: the path of a drafted tree along which the target's greatest logits lie."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv
from tokcore.ops import _sampling_checks as sampling
from tokcore.ops import _tree_checks as trees
from tokcore.token_tree import TokenTree
from tokcore.verdict import Verdict


def _check_target(require: checks.Require, logits: Tensor | None, target_tokens: Tensor | None) -> tuple[Tensor, str]:
    one = (logits is None) != (target_tokens is None)
    got = "none" if logits is None else "both"
    require(one, "logits", lambda: "one of logits and target_tokens", lambda: got)
    if logits is not None:
        kv.check_real(require, "logits", logits.dtype)
        checks._rank(require, "logits", logits, 3)
        V = logits.size(2)
        require(V >= 1, "logits", lambda: "V >= 1", lambda: f"{V}")
        return logits, "logits"
    assert target_tokens is not None
    checks._dtype(require, "target_tokens", target_tokens, (torch.int64,))
    checks._rank(require, "target_tokens", target_tokens, 2)
    return target_tokens, "target_tokens"


@torch.library.register_fake("tokcore::verify_tree_greedy")  # type: ignore[untyped-decorator]
def _verify_tree_greedy_fake(
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
    require = checks.fake_require("verify_tree_greedy")
    given, name = _check_target(require, logits, target_tokens)
    links = {"first_child": first_child, "next_sibling": next_sibling}
    trees.check_tree(require, {"tokens": tokens, "parents": parents, "counts": counts, **links}, given, name)
    if logits is not None:
        kv.check_unit_stride(require, "logits", logits)
    return trees.outputs_like(given)


def verify_tree_greedy(
    logits: Tensor | None,
    tree: TokenTree,
    *,
    target_tokens: Tensor | None = None,
    validate: bool | None = None,
) -> Verdict:
    """Keeps the path of a tree that greedy decoding would have taken.

    From the root on: t = argmax of the node's logits, of equal ones the first; the first child with token t is
    accepted; where there is none, t is the token after the path. What comes out is what greedy decoding gives wherever
    the logits of a node agree with those of ordinary decoding.

    Args:
        logits: [B, N, V], float32, bfloat16 or float16, of every node of ``tree``; the last dimension dense.
        tree: B trees of up to N nodes.
        target_tokens: int64 [B, N] instead of logits: t of every node.
        validate: whether what is wrong with values raises; None: on the CPU. On a GPU it waits for the GPU, and
            ``Verdict.status`` says the same.

    Returns:
        :class:`tokcore.Verdict`; a request without nodes has none.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong device or shape; with ``validate`` also a NaN or +inf in a
            row on the path, or a row without a logit above -inf, with node and request. NotImplementedError: a device
            without kernels.

    Reads the rows on the path, or all of them where there are fewer rows than workers; bitwise the same either way.
    """
    require = checks.wrapper_require("verify_tree_greedy")
    sampling.check_optional(require, {"logits": logits, "target_tokens": target_tokens})
    parts = trees.tensors_of(require, tree)
    given, name = _check_target(require, logits, target_tokens)
    kv.check_device(require, name, given)
    trees.check_tree(require, parts, given, name)
    dense = logits if logits is None or logits.stride(-1) == 1 else logits.contiguous()
    validates = sampling.resolve_validate(require, validate, given)
    op = torch.ops.tokcore.verify_tree_greedy
    return trees.to_verdict(sampling.call(op, dense, target_tokens, *parts.values(), validate=validates))
