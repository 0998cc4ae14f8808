"""Samples from a running model: what goes through ``F.scaled_dot_product_attention`` is written to files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tokcore.ops import _checks as checks
from tokcore.paro.samples import SUFFIX, AttentionSample, save_sample


@dataclass
class Capture:
    """What a capture has done so far."""

    folder: Path
    written: list[Path] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Name of an attention call -> why it was not written; those that the arguments left out are not named."""


@contextmanager
def capture(
    model: nn.Module,
    folder: Path | str,
    *,
    layers: str | Sequence[str] = "*",
    steps: Collection[int] | None = None,
    tokens: int | None = None,
    calls_per_step: int = 1,
    values: bool = True,
) -> Iterator[Capture]:
    """Within this context, write q, k and v of the model's self-attention into a folder, a file for each call.

    A call of the model is a step of the generation. A layer is named after the innermost module that calls
    ``scaled_dot_product_attention``; further calls of the same module in one step are named ``name#1``, ``name#2``.
    Tensors go to the disk one call at a time, so that memory does not grow. :func:`load_samples` reads the folder.

    Args:
        model: runs eagerly; q and k reach the attention after RoPE, in reading order.
        folder: created; it must hold no samples yet.
        layers: shell patterns of layers to write.
        steps: numbers of steps to write, from 0; None is all.
        tokens: calls with another number of tokens are left out; None takes the number of the first call.
        calls_per_step: how often the model is called in a step, such as twice for guidance: each is a further prompt.
        values: also write v, for PSNR and empty heads.

    Yields:
        :class:`Capture`, with the files written and, by name, the calls that were not and why: cross-attention, masks,
        causal attention, and dtypes that attention kernels do not take.

    Raises:
        TypeError: a wrong type. ValueError: a folder with samples in it, a count below 1.
    """
    require = checks.wrapper_require("paro.capture")
    require(isinstance(model, nn.Module), "model", lambda: "a Module", lambda: type(model).__name__, TypeError)
    checks.check_count(require, "calls_per_step", calls_per_step, 1, 2**31 - 1, "calls")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    present = len(list(folder.glob(f"*{SUFFIX}")))
    require(present == 0, "folder", lambda: "a folder without samples", lambda: f"{present} files in {folder}")
    patterns = (layers,) if isinstance(layers, str) else tuple(layers)
    mode = _Recorder(Capture(folder), patterns, steps, tokens, calls_per_step, values)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            before = module.register_forward_pre_hook(mode.enter(name))
            after = module.register_forward_hook(mode.leave, always_call=True)
            stack.callback(before.remove)
            stack.callback(after.remove)
        stack.enter_context(mode)
        yield mode.capture


class _Recorder(TorchFunctionMode):
    def __init__(
        self,
        capture: Capture,
        layers: tuple[str, ...],
        steps: Collection[int] | None,
        tokens: int | None,
        calls_per_step: int,
        values: bool,
    ) -> None:
        super().__init__()
        self.capture = capture
        self._layers = layers
        self._steps = steps
        self._tokens = tokens
        self._calls_per_step = calls_per_step
        self._values = values
        self._modules: list[str] = []
        self._calls = -1  # of the model
        self._seen: dict[str, int] = {}  # attention calls of each module in this call of the model

    def enter(self, name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, _arguments: Any) -> None:
            if not name and "" not in self._modules:  # the model itself, which may call itself
                self._calls += 1
                self._seen = {}
            self._modules.append(name)

        return hook

    def leave(self, _module: nn.Module, _arguments: Any, _output: Any) -> None:
        self._modules.pop()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention and "" in self._modules:
            self._record(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _record(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,  # noqa: ARG002  # its place in the signature
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,  # noqa: ARG002
    ) -> None:
        name = self._modules[-1] or "model"
        count = self._seen.get(name, 0)
        self._seen[name] = count + 1
        name += f"#{count}" if count else ""
        step, prompt = divmod(self._calls, self._calls_per_step)
        if not any(fnmatchcase(name, pattern) for pattern in self._layers):
            return
        if self._steps is not None and step not in self._steps:
            return
        reason = _reason_against(query, key, attn_mask, is_causal, self._tokens)
        if reason is not None:
            self.capture.skipped[name] = reason
            return
        self._tokens = query.size(2)
        q, k, v = (x.detach().cpu() for x in (query, key, value))
        sample = AttentionSample(step, name, q, k, v if self._values and v.shape == k.shape else None, scale)
        safe = re.sub(r"[^\w.#-]", "_", name)
        path = self.capture.folder / f"{len(self.capture.written):06d}-step{step}-call{prompt}-{safe}{SUFFIX}"
        self.capture.written.append(save_sample(path, sample))


def _reason_against(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool, tokens: int | None) -> str | None:
    """Why these tensors are no sample; None if they are one."""
    if mask is not None or is_causal:
        return "the attention is masked" if mask is not None else "the attention is causal"
    if q.dim() != 4:
        return f"q has {q.dim()} dimensions instead of 4"
    if q.size(2) != k.size(2):
        return f"cross-attention of {q.size(2)} queries and {k.size(2)} keys"
    if tokens is not None and q.size(2) != tokens:
        return f"{q.size(2)} tokens instead of {tokens}"
    if q.dtype not in checks.DTYPES:
        return f"dtype {checks.dtype_name(q.dtype)}"
    return None
