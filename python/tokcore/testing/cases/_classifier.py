"""What the case tables of the classifier ops share: inputs, the same-dtype logits, gradients, shapes and options."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokcore.testing.cases._sources import random_source
from tokcore.testing.table import Case, Inputs, Outputs

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

# T, V, C of the verified cases: odd, tiny, at the edges of tiles of 32 in every dimension, and long sums over C and V.
SHAPES = (
    (1, 1, 1),
    (7, 127, 513),
    (127, 513, 7),
    (33, 31, 127),
    (31, 33, 32),
    (32, 32, 31),
    (64, 513, 65),
    (1, 513, 127),
    (127, 7, 1),
    (513, 65, 33),
    (7, 1, 127),
    (5, 70, 4099),
    (33, 4099, 65),
)


def option_sets(options: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """No option, each alone, each pair of options that set different things, and all at once, as (name, parameters)."""
    yield "plain", {}
    for size in (1, 2):
        for names in itertools.combinations(options, size):
            keys = [key for name in names for key in options[name]]
            if len(set(keys)) == len(keys):
                yield "+".join(names), {k: v for name in names for k, v in options[name].items()}
    everything = {name: chosen for name, chosen in options.items() if "strategy" not in chosen}
    yield "all", {key: value for chosen in everything.values() for key, value in chosen.items()}


def verify_cases(options: Mapping[str, Mapping[str, Any]]) -> tuple[Case, ...]:
    """Every set of options in every dtype, the shapes in turn, and every shape in every dtype without options.

    The "quick" ones are those of one option at most.
    """
    cases: dict[str, Case] = {}
    sets = list(option_sets(options))
    for index, (dtype, short) in enumerate(DTYPES.items()):
        plans: list[tuple[tuple[int, int, int], str, dict[str, Any]]] = [(shape, "plain", {}) for shape in SHAPES]
        plans += [(SHAPES[(n + index) % len(SHAPES)], name, chosen) for n, (name, chosen) in enumerate(sets)]
        for (T, V, C), name, chosen in plans:
            label = f"T={T},C={C},V={V},{short}" + ("" if name == "plain" else f",{name}")
            tags = {"verify"} if "+" in name else {"verify", "quick"}
            parameters = {"T": T, "C": C, "V": V, "dtype": dtype, **chosen}
            cases[label] = Case(label, parameters, frozenset(tags))
    return tuple(cases.values())


def peaked_scales(vocabulary: int, hidden: int, share: float = 1.5e-4, spread: float = 1.5) -> tuple[float, float]:
    """(alpha, sigma) of e = alpha·c[target] + sigma·noise for rows of c of unit length: a trained model's distribution.

    The other logits are normal with standard deviation ``spread``; alpha makes lse so large that the given share of the
    vocabulary has p above 2^-12.
    """
    quantile = math.sqrt(2.0) * float(torch.erfinv(torch.tensor(1.0 - 2.0 * share, dtype=torch.float64)))
    lse = 12.0 * math.log(2.0) + spread * quantile
    others = math.log(vocabulary) + spread * spread / 2
    alpha = lse + math.log(-math.expm1(others - lse)) if others < lse else 0.0
    return alpha, math.sqrt(max(0.0, spread * spread - alpha * alpha / hidden))


def leading_shape(parameters: Mapping[str, Any]) -> tuple[int, ...]:
    """[T], or with a ``batch`` [batch, T/batch] where that divides T and [1, T] where not."""
    T, batch = parameters["T"], parameters.get("batch")
    if batch is None:
        return (T,)
    return (batch, T // batch) if T % batch == 0 else (1, T)


def classifier_tensors(case: Case, device: str, seed: int) -> Inputs:
    """e, c, targets of a case; ``peaked`` inputs are a trained model's, others give logits of standard deviation 1."""
    p = case.parameters
    C, V, dtype = p["C"], p["V"], p["dtype"]
    generator = random_source(case, device, seed)
    home = generator.device

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=home)

    leading = leading_shape(p)
    targets = torch.randint(V, leading, generator=generator, device=home)
    c = normal(V, C) / math.sqrt(C)
    if p.get("peaked"):
        alpha, sigma = peaked_scales(V, C)
        c = F.normalize(c, dim=-1)
        aim, noise = c[targets], normal(*leading, C)
        noise = noise - (noise * aim).sum(-1, keepdim=True) * aim  # so that the target's logit is alpha in every row
        e = alpha * aim + sigma * noise
    else:
        e = normal(*leading, C)
    inputs: Inputs = {"e": e.to(dtype), "c": c.to(dtype), "targets": targets}
    if "bias" in p:
        inputs["bias"] = normal(V).to(torch.float32 if p["bias"] == "fp32" else dtype)
    for name in p.get("grad", ("e", "c", "bias")):
        if name in inputs:
            inputs[name].requires_grad_()
    return {name: value.to(device).requires_grad_(value.requires_grad) for name, value in inputs.items()}


def composed_logits(
    e: Tensor, c: Tensor, bias: Tensor | None, softcap: float | None = None, temperature: float = 1.0
) -> Tensor:
    """The logits as a user of PyTorch computes them: a matrix product in the inputs' dtype, the rest in fp32."""
    same = bias is not None and bias.dtype == e.dtype
    z = F.linear(e, c, bias if same else None).float()
    if bias is not None and not same:
        z = z + bias
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return z / temperature


def with_gradients(function: Callable[[Inputs], Outputs], inputs: Inputs) -> Outputs:
    """The outputs, and the gradients of Σ output·upstream with respect to every input that requires one.

    ``inputs["upstream"]`` holds a tensor for each output that takes part.
    """
    leaves = {name: value.detach().clone().requires_grad_() for name, value in _leaves(inputs)}
    outputs = function({**inputs, **leaves})
    upstream = inputs["upstream"]
    total = sum((outputs[name] * upstream[name].to(outputs[name].dtype)).sum() for name in upstream if name in outputs)
    results = {name: output.detach() for name, output in outputs.items()}
    if leaves and isinstance(total, Tensor):
        grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True, materialize_grads=True)
        results |= {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return results


def _leaves(inputs: Inputs) -> Iterator[tuple[str, Tensor]]:
    for name, value in inputs.items():
        if isinstance(value, Tensor) and value.requires_grad:
            yield name, value


def option_names(inputs: Inputs, names: Sequence[str]) -> dict[str, Any]:
    """The arguments among ``names`` that this call gives."""
    return {name: inputs[name] for name in names if name in inputs}
