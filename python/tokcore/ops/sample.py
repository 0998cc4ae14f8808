"""``sample``: a token for each row of logits, with its log-probability, entropy and varentropy."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops import _kv_checks as kv
from tokcore.ops import _sampling_checks as sampling
from tokcore.ops._sampling_checks import Number


class Sampled(NamedTuple):
    """What :func:`sample` returns, by request."""

    token: Tensor  # int64 [B]; -1 where status says why
    logprob: Tensor  # float32 [B], ln p of the token in the distribution it was drawn from
    entropy: Tensor | None  # float32 [B], -sum p ln p of that distribution
    varentropy: Tensor | None  # float32 [B], sum p (ln p)^2 - entropy^2
    status: Tensor  # int32 [B, 2]: 0, or what is wrong with the request; node 0


@torch.library.register_fake("tokcore::sample")  # type: ignore[untyped-decorator]
def _sample_fake(
    logits: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical_mass: float = 1.0,
    repetition_penalty: float = 1.0,
    presence_penalty: float = 0.0,
    frequency_penalty: float = 0.0,
    per_request: Tensor | None = None,
    token_counts: Tensor | None = None,
    allowed_bits: Tensor | None = None,
    return_entropy: bool = False,
    validate: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    require = checks.fake_require("sample")
    values = (temperature, top_k, top_p, min_p, typical_mass, repetition_penalty, presence_penalty, frequency_penalty)
    settings = dict(zip(sampling.SETTINGS, values, strict=True))
    sampling.check_rows(
        require, logits, seeds, positions, settings, per_request, token_counts, allowed_bits, with_nodes=False
    )
    sampling.check_unit_stride(require, "logits", logits)
    B = logits.size(0)
    numbers = B if return_entropy else 0
    return (
        logits.new_empty((B,), dtype=torch.int64),
        logits.new_empty((B,), dtype=torch.float32),
        logits.new_empty((numbers,), dtype=torch.float32),
        logits.new_empty((numbers,), dtype=torch.float32),
        logits.new_empty((B, 2), dtype=torch.int32),
    )


def sample(
    logits: Tensor,
    *,
    seed: int | Tensor,
    position: int | Tensor,
    temperature: Number = 1.0,
    top_k: Number = 0,
    top_p: Number = 1.0,
    min_p: Number = 0.0,
    typical_mass: Number = 1.0,
    repetition_penalty: Number = 1.0,
    presence_penalty: Number = 0.0,
    frequency_penalty: Number = 0.0,
    token_counts: Tensor | None = None,
    allowed_bits: Tensor | None = None,
    return_entropy: bool = False,
    validate: bool | None = None,
) -> Sampled:
    """Draws a token from each row of logits.

    token = argmax over v of ln p_v + g_v, with Gumbel noise g = -ln(-ln u) from Philox bits of (seed, position, v): an
    exact draw from p, and the same one wherever, whenever and beside whatever else it is made. p is softmax(z /
    temperature) of what is left of a row: z with penalties; without tokens that ``allowed_bits`` forbids; then, in this
    order and each on the distribution that the ones before left, top-k, top-p, min-p and typical mass. Tokens that tie
    with the last one kept are kept.

    Args:
        logits: [B, V], float32, bfloat16 or float16; the last dimension dense.
        seed: an int, or int64 [B]: one a request.
        position: of the token to be drawn in its sequence, an int or int64 [B]: no two draws of a sequence may share
            it.
        temperature: at least 0; 0 takes the greatest logit, of equal ones the first.
        top_k: the k greatest logits; 0 is off.
        top_p: the greatest logits whose probabilities sum to top_p at least, in (0, 1].
        min_p: those with at least min_p times the greatest probability, in [0, 1].
        typical_mass: those with -ln p nearest to the entropy whose probabilities sum to typical_mass at least, in
            (0, 1].
        repetition_penalty: of tokens with a count, positive logits are divided by it, others multiplied; above 0.
        presence_penalty, frequency_penalty: subtracted from logits of tokens with a count, once, and once a count.
        token_counts: int32 [B, V], how often each token stands in the request's text; needed for penalties.
        allowed_bits: int32 [B, ceil(V/32)]: bit v % 32 of word v // 32 says that token v may be drawn.
        return_entropy: entropy and varentropy of p in nats.
        validate: whether what is wrong with values raises. That waits for a GPU, so None is True on the CPU and False
            on a GPU, where ``status`` says it.

    Every option may be a number for all requests or a Tensor [B] with one for each.

    Returns:
        :class:`Sampled`.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong device, shape or value; with ``validate`` also a NaN or
            +inf among a row's logits, a row without a logit above -inf, and a grammar that allows nothing, with the
            request's number. NotImplementedError: a device without kernels.

    Probabilities are whole numbers of 2^-50 of the greatest (2^-45 at V = 131072) from fp64 arithmetic in a fixed form,
    so that every instruction-set level, thread count and backend draws the same token. The noise has 64 bits: events of
    2^-64 happen. Two passes over a row, one for ``temperature=0``, three more for each of top-k, top-p and typical
    mass; 26 KB of memory a thread, none of a row's length.

    Sources: Gumbel (1954) for the draw; Salmon et al. (SC 2011) for the bits; Meister et al. (arXiv 2202.00666) for
    typical mass; Nguyen et al. (2407.01082) for min-p.
    """
    require = checks.wrapper_require("sample")
    checks._tensor(require, "logits", logits)
    sampling.check_optional(require, {"token_counts": token_counts, "allowed_bits": allowed_bits})
    kv.check_device(require, "logits", logits)
    checks._rank(require, "logits", logits, 2)
    options: dict[str, Number] = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "typical_mass": typical_mass,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
    }
    settings, per_request = sampling.split_settings(require, logits, options, token_counts)
    seeds = sampling.as_integers(require, "seed", seed, logits)
    positions = sampling.as_integers(require, "position", position, logits)
    defaults = {name: value for name, (value, _, _) in sampling.SETTINGS.items()}
    sampling.check_rows(
        require,
        logits,
        seeds,
        positions,
        {**defaults, **settings},
        per_request,
        token_counts,
        allowed_bits,
        with_nodes=False,
    )
    token, logprob, entropy, varentropy, status = sampling.call(
        torch.ops.tokcore.sample,
        logits if logits.stride(-1) == 1 else logits.contiguous(),
        seeds,
        positions,
        **settings,
        per_request=per_request,
        token_counts=token_counts,
        allowed_bits=allowed_bits,
        return_entropy=return_entropy,
        validate=sampling.resolve_validate(require, validate, logits),
    )
    if not return_entropy:
        entropy = varentropy = None
    return Sampled(token, logprob, entropy, varentropy, status)
