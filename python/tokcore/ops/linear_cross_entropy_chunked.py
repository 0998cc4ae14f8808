"""The chunked strategy of ``linear_cross_entropy``: gradients made in the forward, while a chunk's logits are there.

Recomputing the logits in the backward costs 8·T·V·C FLOPs in all, holding those of a chunk of positions only 6·T·V·C;
the price is a workspace. It needs a loss that is one number, since the gradient that reaches it is then one factor.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokcore import _library
from tokcore.ops import _checks as checks
from tokcore.ops._op_checks import check_operands, check_options
from tokcore.ops.linear_logprobs import call_op

_WORKSPACE_BYTES = {"cpu": 64 * 2**20, "cuda": 2**30}  # a chunk fills the device and stays small beside its memory
_FEWEST_POSITIONS = 256  # below this the sums of grad_c, read and written once a chunk, cost more than recomputing
_TILE = 32


@torch.library.register_fake("tokcore::linear_cross_entropy_chunked")  # type: ignore[untyped-decorator]
def _fake(
    e: Tensor,
    c: Tensor,
    targets: Tensor,
    nll_scale: Tensor,
    smooth_scale: Tensor | None = None,
    square_scale: Tensor | None = None,
    bias: Tensor | None = None,
    class_weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    seq_len: int = 0,
    shift: int = 0,
    softcap: float | None = None,
    temperature: float = 1.0,
    workspace_bytes: int = _WORKSPACE_BYTES["cpu"],
    need_e: bool = True,
    need_c: bool = True,
    need_bias: bool = False,
) -> tuple[Tensor, ...]:
    require = checks.fake_require("linear_cross_entropy_chunked")
    require(targets.dim() == 1, "targets", lambda: "1 dimensions", lambda: f"{targets.dim()}")
    vectors = {"nll_scale": nll_scale}
    vectors |= {k: v for k, v in {"smooth_scale": smooth_scale, "square_scale": square_scale}.items() if v is not None}
    check_operands(require, e, c, targets.unsqueeze(1), bias, class_weight, vectors, "targets")
    check_options(require, e, c, seq_len, shift, softcap, temperature, None)
    has_bias = bias is not None or not need_bias
    require(has_bias, "bias", lambda: "a Tensor with need_bias", lambda: "None")
    least = _panel_bytes(c.size(0))
    require(workspace_bytes >= least, "workspace_bytes", lambda: f"at least {least}", lambda: f"{workspace_bytes}")

    def vector(size: int | torch.SymInt) -> Tensor:
        return e.new_empty((size,), dtype=torch.float32)

    num_tokens = e.size(0)
    return (
        e.new_empty((), dtype=torch.float32),
        vector(num_tokens),
        vector(num_tokens),
        vector(num_tokens if smooth_scale is not None else 0),
        e.new_empty(e.shape if need_e else (0,)),
        c.new_empty(c.shape if need_c else (0,)),
        (e if bias is None else bias).new_empty((c.size(0) if need_bias else 0,)),
    )


def _panel_bytes(vocabulary: int) -> int:
    """What the fp32 logits of 32 positions take."""
    return (vocabulary + _TILE - 1) // _TILE * _TILE * _TILE * 4


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output[4:])
    ctx.needs = [keyword_only_inputs[name] for name in ("need_e", "need_c", "need_bias")]


def _backward(ctx: Any, grad_loss: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * 8
    if torch.is_grad_enabled():  # create_graph: the gradients are constants here, a derivative of them would be wrong
        raise NotImplementedError(
            checks.message("linear_cross_entropy", "create_graph", "False (first derivatives only)", "True")
        )
    # loss.backward() sends a 1: looking at it spares a pass over the gradients. Only a plain tensor in this machine's
    # memory can be looked at for nothing; a traced one or one on a device is multiplied.
    is_one = type(grad_loss) is Tensor and grad_loss.device.type == "cpu" and grad_loss.item() == 1.0
    grad_e, grad_c, grad_bias = (
        None if not needed else grad if is_one else (grad * grad_loss).to(grad.dtype)
        for needed, grad in zip(ctx.needs, ctx.saved_tensors, strict=True)
    )
    return grad_e, grad_c, None, None, None, None, grad_bias, None


torch.library.register_autograd("tokcore::linear_cross_entropy_chunked", _backward, setup_context=_setup_context)


def default_workspace_bytes(device: torch.device) -> int:
    """The bound of a chunk's logits where the caller gives none."""
    return _WORKSPACE_BYTES["cuda" if device.type == "cuda" else "cpu"]


def picks_chunked(e: Tensor, num_tokens: int | torch.SymInt, vocabulary: int, workspace_bytes: int) -> bool:
    """What ``strategy="auto"`` does where both strategies could serve: chunk where FLOPs are dear and memory suffices.

    AMX recomputes bf16 logits so fast that the workspace is not worth its memory traffic.
    """
    if e.device.type == "cpu" and e.dtype == torch.bfloat16 and _library.cpu_isa() == "amx":
        return False
    positions = workspace_bytes // _panel_bytes(vocabulary) * _TILE
    return bool(positions >= _FEWEST_POSITIONS or positions >= num_tokens)


def chunked_loss(
    op: str,
    e: Tensor,
    c: Tensor,
    targets: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    token_weight: Tensor | None,
    *,
    ignore_index: int,
    seq_len: int,
    shift: int,
    mean: bool,
    label_smoothing: float,
    z_loss: float,
    workspace_bytes: int,
    **options: float | None,
) -> Tensor:
    """The reduced loss of e [T, C] and targets [T] as ``linear_cross_entropy`` documents it, its scales known ahead."""
    active = targets != ignore_index
    if shift:
        positions = torch.arange(targets.numel(), device=targets.device)
        active = active & (positions % (seq_len or targets.numel()) >= shift)
    target_weight = active.float()
    if class_weight is not None:
        # A target out of range is the kernel's to report, not this gather's.
        in_range = active & (targets >= 0) & (targets < c.size(0))
        target_weight = class_weight[torch.where(in_range, targets, 0)] * active
    scale = active.float() if token_weight is None else torch.where(active, token_weight.float(), 0.0)
    count = target_weight.sum()
    if mean:
        scale = scale / torch.where(count == 0.0, 1.0, count)
    arguments = (
        (1.0 - label_smoothing) * scale * target_weight,
        scale * (label_smoothing / c.size(0)) if label_smoothing > 0.0 else None,
        scale * z_loss if z_loss > 0.0 else None,
        bias,
        class_weight,
    )
    loss: Tensor = call_op(
        op,
        torch.ops.tokcore.linear_cross_entropy_chunked,
        (e, c, targets, *arguments),
        ignore_index=ignore_index,
        seq_len=seq_len,
        shift=shift,
        workspace_bytes=workspace_bytes,
        need_e=e.requires_grad,
        need_c=c.requires_grad,
        need_bias=bias is not None and bias.requires_grad,
        **options,
    )[0]
    return torch.where(count == 0.0, torch.nan, loss) if mean else loss
