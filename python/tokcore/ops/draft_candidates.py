"""``draft_candidates``: what rows of logits propose, their greatest tokens with their probabilities."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _draft_checks as draft
from tokcore.ops import _kv_checks as kv


class Candidates(NamedTuple):
    """The best tokens of every row."""

    tokens: Tensor  # int32 [..., K] by descending logit, -1 beyond the last one
    probs: Tensor | None  # float32 [..., K], 0 beyond the last one


def _check_options(require: checks.Require, k: int, vocabulary: Any, temperature: float) -> None:
    most = min(vocabulary, draft.MOST_CANDIDATES)
    draft.check_range(require, "k", k, 1, most, f"V of logits, at most {draft.MOST_CANDIDATES}")
    warm = 0.0 < temperature < math.inf
    require(warm, "temperature", lambda: "a finite value > 0", lambda: f"{temperature}")


@torch.library.register_fake("tokcore::draft_candidates")  # type: ignore[untyped-decorator]
def _candidates_fake(logits: Tensor, k: int, *, temperature: float = 1.0, probs: bool = True) -> tuple[Tensor, Tensor]:
    require = checks.fake_require("draft_candidates")
    kv.check_real(require, "logits", logits.dtype)
    checks._rank(require, "logits", logits, 2)
    _check_options(require, k, logits.size(1), temperature)
    kv.check_unit_stride(require, "logits", logits)
    rows = logits.size(0)
    return logits.new_empty((rows, k), dtype=torch.int32), logits.new_empty(
        (rows if probs else 0, k), dtype=torch.float32
    )


def draft_candidates(logits: Tensor, k: int, *, temperature: float = 1.0, probs: bool = True) -> Candidates:
    """The k greatest tokens of every row of logits, and softmax(logits / temperature) there.

    Args:
        logits: [..., V] in float32, bfloat16 or float16.
        k: in [1, min(V, 64)].
        temperature: positive divisor of the logits; it changes no order.
        probs: False leaves the probabilities out: one sweep instead of two.

    Returns:
        tokens int32 [..., k] by descending logit, of equal logits the lower token first, -1 where a row has no more
        logits above -inf; probs float32 [..., k], 0 there. A row that holds a NaN has tokens -1 and probs NaN.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong shape or value. NotImplementedError: a device without
            kernels.

    Reads the logits once, and once more from the cache for ``probs``; no [.., V] result. Bitwise repeatable whatever
    the thread count; tokens are the same on every backend.
    """
    require = checks.wrapper_require("draft_candidates")
    checks._tensor(require, "logits", logits)
    kv.check_real(require, "logits", logits.dtype)
    kv.check_device(require, "logits", logits)
    require(logits.dim() >= 1, "logits", lambda: "at least 1 dimension", lambda: "0")
    checks.check_count(require, "k", k, 1, 2**31, "k")
    checks._number(require, "temperature", temperature)
    _check_options(require, k, logits.size(-1), temperature)
    rows = logits if logits.stride(-1) == 1 else logits.contiguous()
    leading = rows.shape[:-1]
    tokens, weights = torch.ops.tokcore.draft_candidates(
        rows.reshape(-1, rows.size(-1)), k, temperature=temperature, probs=probs
    )
    return Candidates(tokens.reshape(*leading, k), weights.reshape(*leading, k) if probs else None)
