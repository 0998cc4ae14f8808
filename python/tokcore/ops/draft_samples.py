"""``draft_samples``: children of a tree's nodes, drawn from what a draft model says there."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _draft_checks as draft
from tokcore.ops import _kv_checks as kv
from tokcore.ops import _sampling_checks as sampling
from tokcore.ops._sampling_checks import Number

CHILDREN = ("coupled", "without_replacement", "iid")
OPTIONS = ("temperature", "top_k", "top_p", "min_p", "typical_mass")


class DraftSamples(NamedTuple):
    """What :func:`draft_samples` returns, by row."""

    tokens: Tensor  # int32 [R, K] in the order of drawing, -1 where nothing is left to draw
    probs: Tensor  # float32 [R, K], q of each, 0 beside -1
    draft_probs: Tensor | None  # float32 [R, V], q; None for "coupled" children
    status: Tensor  # int32 [R, 2]: 0, or what is wrong with the row, as of tokcore.sample


def _check_children(require: checks.Require, k: int, vocabulary: Any, children: str) -> None:
    most = min(vocabulary, draft.MOST_CANDIDATES)
    draft.check_range(require, "k", k, 1, most, f"V of logits, at most {draft.MOST_CANDIDATES}")
    expected = " or ".join(f"'{name}'" for name in CHILDREN)
    require(children in CHILDREN, "children", lambda: expected, lambda: f"'{children}'")


@torch.library.register_fake("tokcore::draft_samples")  # type: ignore[untyped-decorator]
def _samples_fake(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    k: int,
    *,
    children: str = "coupled",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_mass: float = 1.0,
    per_request: Tensor | None = None,
    validate: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require = checks.fake_require("draft_samples")
    given = zip(OPTIONS, (temperature, top_k, top_p, min_p, typical_mass), strict=True)
    settings = {**_defaults(), **dict(given)}
    sampling.check_rows(require, logits, seeds, positions, settings, per_request, None, None, with_nodes=False)
    sampling.check_unit_stride(require, "logits", logits)
    _check_children(require, k, logits.size(1), children)
    R, V = logits.shape
    return (
        logits.new_empty((R, k), dtype=torch.int32),
        logits.new_empty((R, k), dtype=torch.float32),
        logits.new_empty((0 if children == "coupled" else R, V), dtype=torch.float32),
        logits.new_empty((R, 2), dtype=torch.int32),
    )


def _defaults() -> dict[str, float]:
    return {name: value for name, (value, _, _) in sampling.SETTINGS.items()}


def draft_samples(
    logits: Tensor,
    k: int,
    *,
    seed: int | Tensor,
    position: int | Tensor,
    children: str = "coupled",
    temperature: Number = 1.0,
    top_k: Number = 0,
    top_p: Number = 1.0,
    min_p: Number = 0.0,
    typical_mass: Number = 1.0,
    validate: bool | None = None,
) -> DraftSamples:
    """Draws k tokens from each row of logits, as the children that a rule of verification wants.

    q is a row's distribution as :func:`tokcore.sample` makes it of the same options, without penalties and grammar.

    - ``"coupled"``: the k greatest of ln q + g, with the noise g of (seed, position, token) that
      :func:`tokcore.sample` and the rule "coupled" draw with. Where q equals the target's p, the first of them is the
      token that the target will say.
    - ``"without_replacement"``: the same with noise of the drafter's own, which is independent of the target's: so
      tokens are drawn from q one after the other, each from what the ones before left.
    - ``"iid"``: k independent draws from q; tokens may repeat.

    Args:
        logits: [R, V], float32, bfloat16 or float16; the last dimension dense.
        k: in [1, min(V, 64)].
        seed: an int, or int64 [R].
        position: of the noise, an int or int64 [R]. For "coupled" children that of the token to be drawn. Otherwise no
            two nodes may share it: what hangs under one node may decide how many children another gets, and that is
            lossless only if their draws are independent.
        children: how they are drawn; what :func:`tokcore.verify_tree_sample` calls ``children``.
        temperature, top_k, top_p, min_p, typical_mass: as of :func:`tokcore.sample`, numbers or Tensors [R].
        validate: as of :func:`tokcore.sample`.

    Returns:
        :class:`DraftSamples`; its ``draft_probs`` are what :func:`tokcore.verify_tree_sample` takes for the node.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong device, shape or value; with ``validate`` also a NaN or
            +inf among a row's logits and a row without a logit above -inf. NotImplementedError: a device without
            kernels.

    Draws without replacement and independent ones are exact draws from the float32 numbers that ``draft_probs`` holds.
    Every instruction-set level, thread count and backend draws the same tokens. Two passes over a row and one to draw,
    for ``"iid"`` one a token, on a GPU one a token always.

    Source: draws without replacement by noise: Kool et al. (arXiv 1903.06059); coupling: Daliri et al. (2408.07978).
    """
    require = checks.wrapper_require("draft_samples")
    checks._tensor(require, "logits", logits)
    kv.check_device(require, "logits", logits)
    checks._rank(require, "logits", logits, 2)
    checks.check_count(require, "k", k, 1, 2**31, "k")
    given: dict[str, Number] = dict(zip(OPTIONS, (temperature, top_k, top_p, min_p, typical_mass), strict=True))
    settings, per_request = sampling.split_settings(require, logits, {**_defaults(), **given}, None)
    seeds = sampling.as_integers(require, "seed", seed, logits)
    positions = sampling.as_integers(require, "position", position, logits)
    checked = {**_defaults(), **settings}
    sampling.check_rows(require, logits, seeds, positions, checked, per_request, None, None, with_nodes=False)
    _check_children(require, k, logits.size(1), children)
    tokens, probs, draft_probs, status = sampling.call(
        torch.ops.tokcore.draft_samples,
        logits if logits.stride(-1) == 1 else logits.contiguous(),
        seeds,
        positions,
        k,
        children=children,
        **{name: settings[name] for name in OPTIONS if name in settings},
        per_request=per_request,
        validate=sampling.resolve_validate(require, validate, logits),
    )
    return DraftSamples(tokens, probs, None if children == "coupled" else draft_probs, status)
