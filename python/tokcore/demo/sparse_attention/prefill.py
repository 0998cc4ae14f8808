"""The demo's language model reads held-out text at once, with block masks in place of its dense causal attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

import tokcore
from tokcore import masks
from tokcore.block_mask import BlockMask
from tokcore.demo.model import Transformer
from tokcore.testing.timing import Contestant, interleave, paired_ratio, summarize

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

DENSE = "dense"


@dataclass(frozen=True)
class Prefill:
    """One mask over the whole text."""

    name: str
    density: float  # kept blocks over those that the causal mask keeps
    loss: float  # nats per token of the held-out text
    seconds: float  # of the model's forward pass
    speedup: float  # over dense SDPA, median of rounds


class _Attending(TorchFunctionMode):
    """Within it the model's causal attention is ``attend``."""

    def __init__(self, attend: Attend) -> None:
        super().__init__()
        self._attend = attend

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return self._attend(*args[:3])
        return func(*args, **(kwargs or {}))


def _masked(mask_of: Callable[[Tensor, Tensor], BlockMask]) -> Attend:
    return lambda q, k, v: tokcore.block_sparse_attention(q, k, v, mask_of(q, k), causal=True)


@torch.no_grad()
def measure_prefill(model: Transformer, tokens: Tensor, window: int, seconds: float, rounds: int) -> list[Prefill]:
    """Loss over ``tokens`` [N+1] in one pass, and its time, by mask.

    The window holds as many tokens as the model was trained on; the vertical-slash mask looks at q and k of each layer.
    """
    inputs, targets = tokens[:-1].unsqueeze(0), tokens[1:]
    length = inputs.size(1)
    shape = (length, length)
    causal = masks.causal(shape)
    sliding = masks.sliding_window(shape, min(window, length), sinks=1)
    kept: dict[str, list[float]] = {}

    def slash(q: Tensor, k: Tensor) -> BlockMask:
        mask = masks.vertical_slash(q, k, vertical=length // 16, slash=max(1, length // 256))
        kept.setdefault("slash", []).append(mask.density())
        return mask

    sliding_name = f"window of {window} and a sink"
    attends: dict[str, Attend] = {
        "tokcore, dense": _masked(lambda _q, _k: causal),
        sliding_name: _masked(lambda _q, _k: sliding),
        "vertical-slash": _masked(slash),
    }
    classifier = model.classifier()

    def loss_of(attend: Attend | None) -> float:
        hidden = _forward(model, inputs, attend)[0]
        scored = tokcore.linear_logprobs(hidden, classifier, targets)
        return -float(scored.logprob.double().mean())

    losses = {DENSE: loss_of(None), **{name: loss_of(attend) for name, attend in attends.items()}}
    runs: dict[str, Attend | None] = {DENSE: None, **attends}
    contestants = [
        Contestant(name, [lambda attend=attend: _forward(model, inputs, attend)], paced=False)  # type: ignore[misc]
        for name, attend in runs.items()
    ]
    samples = interleave(contestants, seconds, min_rounds=rounds)
    whole = causal.density()
    densities = {DENSE: 1.0, "tokcore, dense": 1.0, sliding_name: sliding.density() / whole}
    densities["vertical-slash"] = sum(kept["slash"]) / len(kept["slash"]) / whole
    results = []
    for name, loss in losses.items():
        speedup = paired_ratio(samples[DENSE], samples[name])
        assert speedup is not None
        results.append(Prefill(name, densities[name], loss, summarize(samples[name]).median, speedup))
    return results


def _forward(model: Transformer, inputs: Tensor, attend: Attend | None) -> Tensor:
    if attend is None:
        return model(inputs)  # type: ignore[no-any-return]
    with _Attending(attend):
        return model(inputs)  # type: ignore[no-any-return]
