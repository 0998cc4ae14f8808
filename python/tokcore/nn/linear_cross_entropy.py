"""Modules over :func:`tokcore.linear_cross_entropy`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokcore.ops._checks import message
from tokcore.ops.linear_cross_entropy import linear_cross_entropy


class LinearCrossEntropy(torch.nn.Module):
    """:func:`tokcore.linear_cross_entropy` with its options bound; ``forward`` takes e, c, targets and bias.

    Takes the options of the function by the same names and with the same defaults; they are checked when called.
    """

    def __init__(
        self,
        ignore_index: int = -100,
        softcap: float | None = None,
        reduction: str = "mean",
        shift: bool | int = 0,
        return_lse: bool = False,
        filter_eps: float | str | None = "auto",
        *,
        class_weight: Tensor | None = None,
        temperature: float = 1.0,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        return_entropy: bool = False,
        strategy: str = "auto",
        workspace_bytes: int | None = None,
        return_filter_rate: bool = False,
    ) -> None:
        super().__init__()
        self.class_weight: Tensor | None
        self.register_buffer("class_weight", class_weight)
        self.options: dict[str, Any] = {
            "ignore_index": ignore_index,
            "softcap": softcap,
            "reduction": reduction,
            "shift": shift,
            "return_lse": return_lse,
            "filter_eps": filter_eps,
            "temperature": temperature,
            "label_smoothing": label_smoothing,
            "z_loss": z_loss,
            "return_entropy": return_entropy,
            "strategy": strategy,
            "workspace_bytes": workspace_bytes,
            "return_filter_rate": return_filter_rate,
        }

    def forward(
        self, e: Tensor, c: Tensor, targets: Tensor, bias: Tensor | None = None, *, token_weight: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """The function's result for hidden states e [..., C], classifier c [V, C] and targets [...]."""
        return linear_cross_entropy(
            e, c, targets, bias, class_weight=self.class_weight, token_weight=token_weight, **self.options
        )

    def extra_repr(self) -> str:
        """The options, as ``repr`` shows them."""
        return ", ".join(f"{name}={value!r}" for name, value in self.options.items())


class LinearCrossEntropyLoss(torch.nn.Module):
    """Takes the arguments and state dict of ``torch.nn.LinearCrossEntropyLoss`` and computes in fp32 without logits.

    Class indices [...] as targets for input [..., in_features]; the loss is float32 whatever the dtype of the input.

    Raises:
        NotImplementedError: ``out_features`` other than ``()``, ``options`` other than None (they steer PyTorch's
            chunking; use :class:`LinearCrossEntropy` and ``strategy``) and class probabilities as targets.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        out_features: tuple[int, ...] = (),
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        weight: Tensor | None = None,
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        options: object | None = None,
    ) -> None:
        super().__init__()
        if tuple(out_features) != ():
            raise NotImplementedError(_text("out_features", "() (one target per row)", repr(out_features)))
        if options is not None:
            raise NotImplementedError(_text("options", "None", repr(options)))
        if weight is not None and tuple(weight.shape) != (num_classes,):
            raise ValueError(_text("weight", f"shape [{num_classes}]", str(list(weight.shape))))
        self.reduction = reduction
        self.ignore_index = -100 if ignore_index is None else ignore_index
        self.label_smoothing = label_smoothing
        self.weight: Tensor | None
        self.register_buffer("weight", weight)
        self.linear = torch.nn.Linear(in_features, num_classes, bias=bias, device=device, dtype=dtype)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """The loss of input [..., in_features] for class indices target [...]."""
        if target.is_floating_point():
            got = f"class probabilities ({target.dtype})"
            raise NotImplementedError(_text("target", "class indices (int64)", got))
        loss = linear_cross_entropy(
            input,
            self.linear.weight,
            target,
            self.linear.bias,
            self.ignore_index,
            reduction=self.reduction,
            class_weight=None if self.weight is None else self.weight.float(),
            label_smoothing=self.label_smoothing,
        )
        assert isinstance(loss, Tensor)  # nothing but the loss was asked for
        return loss

    def extra_repr(self) -> str:
        """The options, as ``repr`` shows them."""
        return f"reduction={self.reduction}, ignore_index={self.ignore_index}, label_smoothing={self.label_smoothing}"


def _text(argument: str, expected: str, got: str) -> str:
    return message("nn.LinearCrossEntropyLoss", argument, expected, got)
