"""``linear_logprobs``: per-token log-probability, lse, entropy, gathered and top-k log-probabilities without logits.

Holds the fakes and the autograd formula of the op pair ``linear_logprobs_forward`` / ``linear_logprobs_backward``, on
which ``linear_cross_entropy`` stands too.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.ops import _checks as checks
from tokcore.ops._op_checks import check_operands, check_options

FILTER_TILE = 32  # positions per mask word and vocabulary entries per mask row of ``kept``


class Statistics(NamedTuple):
    """Outputs of the op ``linear_logprobs_forward``; everything is [T] or [T, K] in target order."""

    lse: Tensor
    entropy: Tensor
    gathered: Tensor  # logits z at indices
    logit_sum: Tensor
    topk_values: Tensor  # logits
    topk_indices: Tensor
    kept: Tensor


class LinearLogprobs(NamedTuple):
    """What :func:`linear_logprobs` returns; what was not asked for is None."""

    logprob: Tensor  # [...] fp32, z_target - lse
    lse: Tensor  # [...] fp32, natural logarithm
    entropy: Tensor | None  # [...] fp32, nats
    gathered: Tensor | None  # [..., K] fp32 log-probabilities of ``gather``
    topk_values: Tensor | None  # [..., topk] fp32 log-probabilities, descending
    topk_indices: Tensor | None  # [..., topk] int64


@torch.library.register_fake("tokcore::linear_logprobs_forward")  # type: ignore[untyped-decorator]
def _forward_fake(
    e: Tensor,
    c: Tensor,
    indices: Tensor,
    bias: Tensor | None = None,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    seq_len: int = 0,
    shift: int = 0,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    logit_sum: bool = False,
    topk: int = 0,
    filter_eps: float | None = None,
    workspace_bytes: int | None = None,
) -> tuple[Tensor, ...]:
    require = checks.fake_require("linear_logprobs_forward")
    check_operands(require, e, c, indices, bias, class_weight, {})
    check_options(require, e, c, seq_len, shift, softcap, temperature, filter_eps, topk)
    num_tokens, vocabulary = e.size(0), c.size(0)
    words = 0 if filter_eps is None else (num_tokens + FILTER_TILE - 1) // FILTER_TILE
    tiles = 0 if filter_eps is None else (vocabulary + FILTER_TILE - 1) // FILTER_TILE
    return (
        e.new_empty((num_tokens,), dtype=torch.float32),
        e.new_empty((num_tokens if entropy else 0,), dtype=torch.float32),
        e.new_empty((num_tokens, indices.size(1)), dtype=torch.float32),
        e.new_empty((num_tokens if logit_sum else 0,), dtype=torch.float32),
        e.new_empty((num_tokens, topk), dtype=torch.float32),
        e.new_empty((num_tokens, topk), dtype=torch.int64),
        e.new_empty((tiles, words), dtype=torch.int32),
    )


@torch.library.register_fake("tokcore::linear_logprobs_backward")  # type: ignore[untyped-decorator]
def _backward_fake(
    e: Tensor,
    c: Tensor,
    indices: Tensor,
    logits: Tensor,
    lse: Tensor,
    kept: Tensor,
    grad_prob: Tensor,
    grad_logits: Tensor,
    grad_plogp: Tensor | None = None,
    grad_sum: Tensor | None = None,
    bias: Tensor | None = None,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    seq_len: int = 0,
    shift: int = 0,
    softcap: float | None = None,
    temperature: float = 1.0,
    filter_eps: float | None = None,
    workspace_bytes: int | None = None,
    need_e: bool = True,
    need_c: bool = True,
    need_bias: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    require = checks.fake_require("linear_logprobs_backward")
    vectors = {"logits": logits, "lse": lse, "grad_prob": grad_prob, "grad_logits": grad_logits}
    vectors |= {k: v for k, v in {"grad_plogp": grad_plogp, "grad_sum": grad_sum}.items() if v is not None}
    check_operands(require, e, c, indices, bias, class_weight, vectors)
    check_options(require, e, c, seq_len, shift, softcap, temperature, filter_eps)
    has_bias = bias is not None or not need_bias
    require(has_bias, "bias", lambda: "a Tensor with need_bias", lambda: "None")
    return (
        e.new_empty(e.shape if need_e else (0,)),
        c.new_empty(c.shape if need_c else (0,)),
        (e if bias is None else bias).new_empty((c.size(0) if need_bias else 0,)),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    e, c, indices, bias, class_weight = inputs
    statistics = Statistics(*output)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(statistics.topk_indices, statistics.kept)
    ctx.save_for_backward(e, c, indices, bias, class_weight, *output)
    ctx.options = {
        name: keyword_only_inputs[name]
        for name in ("ignore_index", "seq_len", "shift", "softcap", "temperature", "filter_eps", "workspace_bytes")
    }


def _backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Turns gradients of the statistics into coefficients of p, p·log p, w and the gathered logits.

    dlse/dz_v = p_v, dH/dz_v = -p_v (log p_v + H), dz_k/dz_v = [v = k], d(sum w z)/dz_v = w_v.
    """
    e, c, indices, bias, class_weight, *output = ctx.saved_tensors
    statistics = Statistics(*output)
    grad_lse, grad_entropy, grad_gathered, grad_sum, grad_topk, _, _ = grads
    if all(grad is None for grad in grads):
        return None, None, None, None, None
    grad_prob = torch.zeros_like(statistics.lse) if grad_lse is None else grad_lse
    grad_plogp = None
    if grad_entropy is not None and grad_entropy.numel() == statistics.lse.numel():
        # An entropy that was not asked for has no elements, yet a traced backward hands over a gradient for it.
        grad_plogp = -grad_entropy
        grad_prob = grad_prob - grad_entropy * statistics.entropy
    logits = statistics.gathered
    grad_logits = torch.zeros_like(logits) if grad_gathered is None else grad_gathered
    if grad_topk is not None and statistics.topk_values.size(1) > 0:
        indices = torch.cat([indices, statistics.topk_indices], dim=1)
        logits = torch.cat([logits, statistics.topk_values], dim=1)
        grad_logits = torch.cat([grad_logits, grad_topk], dim=1)
    if grad_sum is not None and grad_sum.numel() != statistics.lse.numel():
        grad_sum = None
    # Trailing arguments at their defaults never reach the function, so that the tuple may be shorter than five.
    need_e, need_c, _, need_bias, _ = (*ctx.needs_input_grad, False, False)[:5]
    grad_e, grad_c, grad_bias = torch.ops.tokcore.linear_logprobs_backward(
        e,
        c,
        indices,
        logits,
        statistics.lse,
        statistics.kept,
        grad_prob.contiguous(),
        grad_logits.contiguous(),
        grad_plogp,
        grad_sum,
        bias,
        class_weight,
        **ctx.options,
        need_e=need_e,
        need_c=need_c,
        need_bias=need_bias,
    )
    return grad_e if need_e else None, grad_c if need_c else None, None, grad_bias if need_bias else None, None


def _double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(
        checks.message("linear_logprobs_backward", "create_graph", "False (first derivatives only)", "True")
    )


torch.library.register_autograd("tokcore::linear_logprobs_forward", _backward, setup_context=_setup_context)
torch.library.register_autograd("tokcore::linear_logprobs_backward", _double_backward)

_OUT_OF_RANGE = re.compile(
    r"argument '(indices|targets)': expected (?P<expected>.*), got (?P<got>.*?)(?P<column>, column \d+)?$"
)
_WORKSPACE = re.compile(r"argument 'workspace_bytes': expected (?P<expected>.*), got (?P<got>.*)$")


def call_op(op: str, overload: Any, arguments: tuple[Any, ...], **options: Any) -> Any:
    """Calls an operator; what only its kernel can find wrong with the values becomes the public ``op``'s ValueError."""
    if torch.compiler.is_compiling():
        return overload(*arguments, **options)
    try:
        return overload(*arguments, **options)
    except RuntimeError as error:
        first_line = str(error).splitlines()[0]
        found = _OUT_OF_RANGE.search(first_line)
        argument = "workspace_bytes" if found is None else "gather" if found["column"] else "targets"
        found = found or _WORKSPACE.search(first_line)
        if found is None:
            raise
        raise ValueError(checks.message(op, argument, found["expected"], found["got"])) from None


def statistics(op: str, e: Tensor, c: Tensor, indices: Tensor, *arguments: Tensor | None, **options: Any) -> Statistics:
    """Calls the forward op on e [T, C] and indices [T, K]."""
    return Statistics(*call_op(op, torch.ops.tokcore.linear_logprobs_forward, (e, c, indices, *arguments), **options))


def flatten_rows(x: Tensor) -> Tensor:
    """[..., C] as [T, C] with dense rows; the row stride stays free, so that most layouts need no copy."""
    rows = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def wants_grad(*tensors: Tensor | None) -> bool:
    """Whether a gradient through any of the tensors can be asked for later."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def linear_logprobs(
    e: Tensor,
    c: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    *,
    softcap: float | None = None,
    temperature: float = 1.0,
    entropy: bool = False,
    gather: Tensor | None = None,
    topk: int = 0,
    filter_eps: float | str | None = None,
) -> LinearLogprobs:
    """Log-probabilities under the softmax of a linear classifier, without holding its logits.

    With z = softcap·tanh((e·cᵀ + bias)/softcap)/temperature, p = softmax(z), lse = log Σ exp z:
    logprob = z[target] - lse, entropy H = lse - Σ p·z, all natural logarithms, in fp32.

    Args:
        e: hidden states [..., C], float32, bfloat16 or float16.
        c: classifier [V, C], dtype of ``e``. A last dimension that is not dense is copied, of ``e`` too.
        targets: int64 [...], values in [0, V).
        bias: [V], dtype of ``e`` or float32.
        softcap: positive bound of the logits before the temperature, or None.
        temperature: positive divisor of the logits.
        entropy: also compute the entropy.
        gather: int64 [..., K], values in [0, V): also return the log-probabilities of these tokens.
        topk: also return the ``topk`` largest log-probabilities, descending, the lower index first among equals.
        filter_eps: probabilities below it count as zero in the gradients; None (default) is exact, ``"auto"`` is 2^-12
            for bfloat16, 2^-15 for float16 and off for float32. With ``entropy`` the threshold is lowered so that
            neither p nor ``|p (log p + H)|`` above ``filter_eps`` is dropped.

    Returns:
        :class:`LinearLogprobs`; what was not asked for is None. Every real-valued field is differentiable with respect
        to ``e``, ``c`` and ``bias`` (first derivatives).

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong device, rank, shape or value, a target or an entry of
            ``gather`` out of range included. NotImplementedError: a device without kernels.

    Forward 2·T·V·C FLOPs, backward 6·T·V·C (logits recomputed); about (T + V)·C elements are read from memory. Results
    are bitwise repeatable whatever the thread count, and each row is bitwise what it is alone.
    """
    require = checks.wrapper_require("linear_logprobs")
    checks.check_classifier(require, e, c, targets, bias, gather=gather)
    checks.check_positive(require, "softcap", softcap, optional=True)
    checks.check_positive(require, "temperature", temperature, optional=False)
    checks.check_count(require, "topk", topk, 0, c.size(0), "V of c")
    eps = checks.resolve_filter_eps(require, filter_eps, e.dtype, exact=False)
    indices = targets.reshape(-1, 1)
    if gather is not None:
        indices = torch.cat([indices, gather.reshape(-1, gather.size(-1))], dim=1)
    found = statistics(
        "linear_logprobs",
        flatten_rows(e),
        flatten_rows(c),
        indices,
        bias,
        softcap=softcap,
        temperature=temperature,
        entropy=entropy,
        topk=topk,
        filter_eps=eps if wants_grad(e, c, bias) else None,
    )
    shape = targets.shape
    logprobs = found.gathered - found.lse.unsqueeze(1)
    top = (found.topk_values - found.lse.unsqueeze(1)).reshape(*shape, topk) if topk else None
    return LinearLogprobs(
        logprob=logprobs[:, 0].reshape(shape),
        lse=found.lse.reshape(shape),
        entropy=found.entropy.reshape(shape) if entropy else None,
        gathered=None if gather is None else logprobs[:, 1:].reshape(gather.shape),
        topk_values=top,
        topk_indices=found.topk_indices.reshape(*shape, topk) if topk else None,
    )
