"""``block_sparse_attention``: attention over the kept blocks of a :class:`tokcore.BlockMask`, differentiable."""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.block_mask import BlockMask
from tokcore.ops import _attention_checks as attention
from tokcore.ops import _checks as checks


@torch.library.register_fake("tokcore::block_sparse_attention_forward")  # type: ignore[untyped-decorator]
def _forward_fake(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask_bits: Tensor,
    block_m: int,
    block_n: int,
    *,
    scale: float,
    causal: bool = False,
) -> tuple[Tensor, Tensor]:
    require = checks.fake_require("block_sparse_attention_forward")
    _check_operator(require, q, k, v, {"mask_bits": mask_bits}, block_m, block_n, scale)
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.register_fake("tokcore::block_sparse_attention_backward")  # type: ignore[untyped-decorator]
def _backward_fake(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    mask_bits: Tensor,
    block_m: int,
    block_n: int,
    grad_lse: Tensor | None = None,
    *,
    scale: float,
    causal: bool = False,
    need_q: bool = True,
    need_k: bool = True,
    need_v: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    require = checks.fake_require("block_sparse_attention_backward")
    further = {"mask_bits": mask_bits, "grad_out": grad_out, "out": out, "lse": lse}
    if grad_lse is not None:
        further["grad_lse"] = grad_lse
    _check_operator(require, q, k, v, further, block_m, block_n, scale)
    return (
        q.new_empty(q.shape if need_q else (0,)),
        k.new_empty(k.shape if need_k else (0,)),
        v.new_empty(v.shape if need_v else (0,)),
    )


def _check_operator(
    require: checks.Require,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    further: dict[str, Tensor],
    block_m: int,
    block_n: int,
    scale: float,
) -> None:
    attention.check_tensors(require, q, k, v, further)
    attention.check_devices(require, q, {"k": k, "v": v, **further})
    attention.check_shapes(require, q, k, v, further)
    attention.check_mask_bits(require, q, k, further["mask_bits"], block_m, block_n)
    attention.check_range(require, q, scale)
    like_q = {name: value for name, value in further.items() if name in ("grad_out", "out")}
    attention.check_strides(require, {"q": q, "k": k, "v": v, **like_q})


def _setup_context(ctx: Any, inputs: tuple[Any, ...], keyword_only_inputs: dict[str, Any], output: Any) -> None:
    q, k, v, mask_bits, *block = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, mask_bits, *output)
    ctx.block = tuple(block)
    ctx.options = {name: keyword_only_inputs[name] for name in ("scale", "causal")}


def _backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    q, k, v, mask_bits, out, lse = ctx.saved_tensors
    needs = ctx.needs_input_grad[:3]
    grad_out = torch.zeros_like(out) if grad_out is None else attention.dense_heads(grad_out)
    grads = torch.ops.tokcore.block_sparse_attention_backward(
        grad_out,
        q,
        k,
        v,
        out,
        lse,
        mask_bits,
        *ctx.block,
        None if grad_lse is None else grad_lse.contiguous(),
        **ctx.options,
        **dict(zip(("need_q", "need_k", "need_v"), needs, strict=True)),
    )
    wanted = [grad if need else None for grad, need in zip(grads, needs, strict=True)]
    return (*wanted, None, None, None)


def _double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    raise NotImplementedError(
        checks.message("block_sparse_attention_backward", "create_graph", "False (first derivatives only)", "True")
    )


torch.library.register_autograd("tokcore::block_sparse_attention_forward", _backward, setup_context=_setup_context)
torch.library.register_autograd("tokcore::block_sparse_attention_backward", _double_backward)


@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    *,
    scale: float | None = None,
    causal: bool = False,
    return_lse: Literal[False] = False,
) -> Tensor: ...
@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    *,
    scale: float | None = None,
    causal: bool = False,
    return_lse: Literal[True],
) -> tuple[Tensor, Tensor]: ...
@overload
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    *,
    scale: float | None = None,
    causal: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]: ...
def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block_mask: BlockMask,
    *,
    scale: float | None = None,
    causal: bool = False,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(scale·q·kᵀ)·v over the elements that the mask keeps, at a cost in proportion to its density.

    Element (m, n) counts where the block mask keeps block (m // bm, n // bn) and, with ``causal``, n <= m + N - M. A
    row without any such element gives out = 0 and lse = -inf. A mask that keeps everything is dense attention.

    Args:
        q: [B, H, M, D], float32, bfloat16 or float16; D in [32, 256]. A last dimension that is not dense is copied.
        k: [B, Hkv, N, D], dtype of ``q``; H a multiple of Hkv: each head serves H/Hkv query heads.
        v: [B, Hkv, N, D], dtype of ``q``.
        block_mask: shape (M, N), of 1 or B batch entries and 1 or H heads, on the device of ``q``.
        scale: positive factor of the scores; None is 1/sqrt(D).
        causal: queries do not see what comes after them; their ends are aligned, as the last query sees every key.
        return_lse: also return the logarithm of the sum of exponentials.

    Returns:
        out [B, H, M, D] in the dtype of ``q``, contiguous; with ``return_lse`` also lse [B, H, M], float32, natural
        logarithm. Both are differentiable with respect to q, k and v (first derivatives).

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong device, rank, shape or value. NotImplementedError: a
            device without kernels.

    A kept block takes 4·bm·bn·D FLOPs, 14·bm·bn·D in the backward (scores recomputed for grad_q and for grad_k with
    grad_v). Memory beyond inputs and outputs grows with N·D, at most with one head of each batch entry at a time; the
    attention matrix is never held. Results and gradients are bitwise repeatable whatever the thread count. A NaN or inf
    in q and k reaches the rows that see it; one in v reaches every row that keeps its block.

    Sources: FlashAttention-2 (arXiv 2307.08691) for the recomputation; block masks as in PAROAttention (2506.16054).
    """
    require = checks.wrapper_require("block_sparse_attention")
    chosen = attention.check_public(require, q, k, v, scale)
    attention.check_flag(require, "causal", causal)
    check_mask(require, block_mask, q, k)
    out, lse = torch.ops.tokcore.block_sparse_attention_forward(
        attention.dense_heads(q),
        attention.dense_heads(k),
        attention.dense_heads(v),
        block_mask.bits,
        *block_mask.block,
        scale=chosen,
        causal=causal,
    )
    return (out, lse) if return_lse else out


def check_mask(require: checks.Require, block_mask: BlockMask, q: Tensor, k: Tensor) -> None:
    """A block mask that fits q [B, H, M, D] and k [B, Hkv, N, D]."""
    check_mask_of(require, block_mask, q.size(0), q.size(1), q.size(2), k.size(2), q.device, "M of q, N of k")


def check_mask_of(
    require: checks.Require,
    block_mask: BlockMask,
    B: int,
    H: int,
    M: int,
    N: int,
    device: torch.device,
    letters: str = "N, N",
) -> None:
    """A block mask for B batch entries, H heads, M queries and N keys."""
    require(
        isinstance(block_mask, BlockMask),
        "block_mask",
        lambda: "a tokcore.BlockMask",
        lambda: type(block_mask).__name__,
        TypeError,
    )
    got = block_mask.bits.device
    require(got == device, "block_mask", lambda: f"device {device} of q", lambda: str(got))
    fits = block_mask.shape[0] == M and block_mask.shape[1] == N
    require(fits, "block_mask", lambda: f"shape ({M}, {N}) ({letters})", lambda: f"{block_mask.shape}")
    batch, heads = block_mask.bits.size(0), block_mask.bits.size(1)
    require(batch == 1 or batch == B, "block_mask", lambda: f"1 or {B} batch entries", lambda: f"{batch}")
    require(heads == 1 or heads == H, "block_mask", lambda: f"1 or {H} heads", lambda: f"{heads}")
