"""The family's operators on their CUDA kernels, executed on the CPU: functions with the operators' signatures.

They allocate as the torch-facing entries do, with every array between inaccessible pages and everything that is not an
input poisoned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from simt_support import guarded, guarded_empty, simt
from torch import Tensor

TILE = 32


@dataclass
class Setup:
    """What a call would find on a GPU: how many multiprocessors, and against which guard page its arrays lie."""

    capability: int = 80
    multiprocessors: int = 3
    placement: str = "end"

    @property
    def machine(self) -> Any:
        return simt.CudaMachine(self.capability, self.multiprocessors)


SETUP = Setup()


def words(count: int) -> int:
    return -(-count // TILE)


def log_threshold(eps: float | None, entropy: bool, vocabulary: int) -> float:
    """As ``filter_log_threshold`` of the entries."""
    if eps is None or eps <= 0:
        return -math.inf
    log_eps = math.log(eps)
    return log_eps - math.log1p(4.0 * (math.log(vocabulary) - log_eps + 1.0)) if entropy else log_eps


class Arrays:
    """Keeps the arrays of a call alive and turns them into fields of a params struct."""

    def __init__(self) -> None:
        self.fields: dict[str, Any] = {}
        self.kept: list[Tensor] = []

    def give(self, name: str, tensor: Tensor | None) -> None:
        """An input, read-only."""
        if tensor is not None:
            self._field(name, guarded(tensor, name, SETUP.placement))

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, value: float | None = None) -> Tensor:
        """An output that holds poison, or ``value``."""
        array = guarded_empty(shape, dtype, name, SETUP.placement)
        if value is not None:
            array.fill_(value)
        self._field(name, array)
        return array

    def _field(self, name: str, array: Tensor) -> None:
        self.kept.append(array)
        self.fields[name] = array.data_ptr()

    def rows(self, name: str, tensor: Tensor) -> None:
        """e or c with its strides: the storage that the view spans, from its first element on."""
        rows, columns = tensor.shape
        stride = tensor.stride(0)
        span = (rows - 1) * stride + columns if rows and columns else 0
        flat = tensor.detach().as_strided((span,), (1,)) if span else tensor.detach().reshape(-1)
        self.give(name, flat)
        self.fields[f"stride_{name}_row"] = stride

    def workspace(self, size: int, name: str = "workspace") -> int:
        array = guarded_empty((size,), torch.uint8, name, SETUP.placement)
        self.kept.append(array)
        return array.data_ptr()


def logits_fields(
    arrays: Arrays,
    e: Tensor,
    c: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    class_weight: Tensor | None,
    shift: int,
    softcap: float | None,
    temperature: float,
    filter_eps: float | None,
    entropy: bool,
) -> None:
    arrays.rows("e", e)
    arrays.rows("c", c)
    arrays.give("indices", indices)
    arrays.give("bias", None if bias is None else bias.detach().float())
    arrays.give("class_weight", class_weight)
    arrays.fields |= {
        "dtype": str(e.dtype).removeprefix("torch."),
        "num_positions": e.size(0),
        "hidden_size": e.size(1),
        "vocab_size": c.size(0),
        "num_indices": indices.size(1),
        "shift": shift,
        "softcap": softcap or 0.0,
        "temperature": temperature,
        "filter_log_eps": log_threshold(filter_eps, entropy, c.size(0)),
    }


def run(params: Any, arrays: Arrays, ignore_index: int | None, seq_len: int, *loss: int) -> None:
    workspace = arrays.workspace(simt.workspace(params, SETUP.machine))
    simt.run(params, ignore_index, seq_len, SETUP.machine, workspace, *loss)


def forward(
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
    """``tokcore::linear_logprobs_forward``."""
    T, V, K = e.size(0), c.size(0), indices.size(1)
    arrays = Arrays()
    logits_fields(arrays, e, c, indices, bias, class_weight, shift, softcap, temperature, filter_eps, entropy)
    filters = filter_eps is not None
    real = torch.float32
    outputs = (
        arrays.take("lse", (T,), real, 0.0),
        arrays.take("entropy", (T if entropy else 0,), real, 0.0),
        arrays.take("gathered", (T, K), real, 0.0),
        arrays.take("logit_sum", (T if logit_sum else 0,), real, 0.0),
        arrays.take("topk_values", (T, topk), real, 0.0),
        arrays.take("topk_indices", (T, topk), torch.int64, -1),
        arrays.take("kept", (words(V), words(T)) if filters else (0, 0), torch.int32),
    )
    if not filters:
        del arrays.fields["kept"]
    arrays.fields |= {"wants_entropy": entropy, "wants_logit_sum": logit_sum, "topk": topk, "kept_words": words(T)}
    if workspace_bytes is not None:
        check_workspace("linear_logprobs_forward", arrays, workspace_bytes, bias is not None, logit_sum, filters)
    run(simt.LinearLogprobsForward(arrays.fields), arrays, ignore_index, seq_len)
    return tuple(output.clone() for output in outputs)


_LOGITS_FIELDS = (
    *("dtype", "e", "c", "stride_e_row", "stride_c_row", "indices", "bias", "class_weight", "num_positions"),
    *("hidden_size", "vocab_size", "num_indices", "shift", "softcap", "temperature", "filter_log_eps"),
)


def check_workspace(op: str, arrays: Arrays, size: int, has_bias: bool, has_sum: bool, filters: bool) -> None:
    """The forward refuses what the backward to come could not run within."""
    fields = {name: arrays.fields[name] for name in _LOGITS_FIELDS if name in arrays.fields}
    anything = fields["e"]
    fields |= {"grad_e": anything, "grad_c": anything, "kept_words": arrays.fields["kept_words"]}
    fields |= {"grad_bias": anything} if has_bias else {}
    fields |= {"grad_sum": anything} if has_sum else {}
    fields |= {"kept": anything} if filters else {}
    refuse_small(op, simt.LinearLogprobsBackward(fields), size)


def refuse_small(op: str, params: Any, size: int) -> None:
    least = simt.least_workspace(params, SETUP.machine)
    if size < least:
        raise too_small(op, least, size)


def too_small(op: str, least: int, size: int) -> RuntimeError:
    return RuntimeError(f"tokcore.{op}: argument 'workspace_bytes': expected at least {least}, got {size}")


def backward(
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
    """``tokcore::linear_logprobs_backward``."""
    arrays = Arrays()
    entropy = grad_plogp is not None
    logits_fields(arrays, e, c, indices, bias, class_weight, shift, softcap, temperature, filter_eps, entropy)
    given = {"logits": logits, "lse": lse, "grad_prob": grad_prob, "grad_logits": grad_logits}
    given |= {"grad_plogp": grad_plogp, "grad_sum": grad_sum, "kept": kept if filter_eps is not None else None}
    for name, value in given.items():
        arrays.give(name, value)
    arrays.fields["kept_words"] = words(e.size(0))
    nothing = torch.empty(0)
    grad_e = arrays.take("grad_e", tuple(e.shape), e.dtype) if need_e else nothing.to(e.dtype)
    grad_c = arrays.take("grad_c", tuple(c.shape), c.dtype) if need_c else nothing.to(c.dtype)
    grad_bias = arrays.take("grad_bias", (c.size(0),), torch.float32) if need_bias else nothing
    if workspace_bytes is not None:
        refuse_small("linear_logprobs_backward", simt.LinearLogprobsBackward(arrays.fields), workspace_bytes)
        arrays.fields["workspace_bytes"] = workspace_bytes
    params = simt.LinearLogprobsBackward(arrays.fields)
    if workspace_bytes is not None:
        assert simt.workspace(params, SETUP.machine) <= workspace_bytes
    run(params, arrays, ignore_index, seq_len)
    bias_type = e.dtype if bias is None else bias.dtype
    return grad_e.clone(), grad_c.clone(), grad_bias.to(bias_type, copy=True)


def chunked(
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
    workspace_bytes: int = 67108864,
    need_e: bool = True,
    need_c: bool = True,
    need_bias: bool = False,
) -> tuple[Tensor, ...]:
    """``tokcore::linear_cross_entropy_chunked``."""
    T, V = e.size(0), c.size(0)
    panel = words(V) * TILE * TILE * 4
    if workspace_bytes < panel:
        raise too_small("linear_cross_entropy_chunked", panel, workspace_bytes)
    arrays = Arrays()
    indices = targets.unsqueeze(1)
    logits_fields(arrays, e, c, indices, bias, class_weight, shift, softcap, temperature, None, False)
    for name, value in {"nll_scale": nll_scale, "smooth_scale": smooth_scale, "square_scale": square_scale}.items():
        arrays.give(name, value)
    chunk_size = min(workspace_bytes // panel * TILE, words(max(T, 1)) * TILE)
    real = torch.float32
    arrays.take("workspace", (chunk_size // TILE * panel // 4,), real)
    lse = arrays.take("lse", (T,), real, 0.0)
    logits = arrays.take("logits", (T,), real, 0.0)
    logit_sum = arrays.take("logit_sum", (T if smooth_scale is not None else 0,), real, 0.0)
    grad_e = arrays.take("grad_e", tuple(e.shape), e.dtype) if need_e else torch.empty(0, dtype=e.dtype)
    grad_c = arrays.take("grad_c", tuple(c.shape), c.dtype) if need_c else torch.empty(0, dtype=c.dtype)
    if need_c and chunk_size < T:
        arrays.take("grad_c_sum", tuple(c.shape), real)
    grad_bias = arrays.take("grad_bias", (V,), real) if need_bias else torch.empty(0)
    arrays.fields["chunk_size"] = chunk_size
    loss = guarded_empty((1,), real, "loss", SETUP.placement)
    run(simt.LinearCrossEntropyChunked(arrays.fields), arrays, ignore_index, seq_len, loss.data_ptr())
    results = (loss[0], lse, logits, logit_sum, grad_e, grad_c)
    return (*(x.clone() for x in results), grad_bias.to(e.dtype if bias is None else bias.dtype, copy=True))


@contextmanager
def in_place_of_the_cpu() -> Iterator[None]:
    """The operators run these functions for CPU tensors, and so do the public functions and their gradients."""
    library = torch.library.Library("tokcore", "IMPL")
    try:
        for name, function in {
            "linear_logprobs_forward": forward,
            "linear_logprobs_backward": backward,
            "linear_cross_entropy_chunked": chunked,
        }.items():
            library.impl(name, function, "CPU", allow_override=True)
        yield
    finally:
        library._destroy()
