"""Case table of ``draft_samples``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokcore.ops.draft_samples import CHILDREN, draft_samples
from tokcore.reference.draft_samples import draft_samples as reference_samples
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases._draft import case_of, generator_of
from tokcore.testing.cases.sample import on_cpu
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, Variant

SHAPES = ((1, 1, 1), (3, 7, 7), (5, 127, 8), (2, 513, 64), (3, 1027, 4), (0, 9, 2))  # R, V, k
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.6, "top_k": 9},
    {"top_p": 0.8, "temperature": 1.7},
    {"temperature": 0.0},
    {"min_p": 0.02, "typical_mass": 0.9},
    {"each": True},
)
_MAIN = "R=64,V=32768,k=4,bf16"


def _cases() -> tuple[Case, ...]:
    cases = []
    for d, (dtype, short) in enumerate(DTYPES.items()):
        for c, children in enumerate(CHILDREN):
            for s, (R, V, k) in enumerate(SHAPES):
                options = OPTIONS[(s + c + d) % len(OPTIONS)]
                label = ",".join([f"R={R},V={V},k={k}", short, children, *(f"{n}={x}" for n, x in options.items())])
                cases.append(case_of(label, R=R, V=V, k=k, dtype=dtype, children=children, options=options))
    main = {"R": 64, "V": 32768, "k": 4, "dtype": torch.bfloat16, "children": "without_replacement", "options": {}}
    return (*cases, case_of(_MAIN, "bench bench-cuda", **main))


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Peaked logits, some of them -inf, seeds and positions by row."""
    p, generator = case.parameters, generator_of(seed)
    R, V = p["R"], p["V"]
    logits = 3.0 * torch.randn(R, V, generator=generator)
    logits[:, 1::13] = float("-inf")
    options = dict(p["options"])
    if options.pop("each", False):
        options["temperature"] = torch.rand(R, generator=generator).to(torch.float64)
        options["top_p"] = torch.rand(R, generator=generator).clamp(min=0.1)
    inputs: Inputs = {"logits": logits.to(p["dtype"]), "k": p["k"], "children": p["children"], **options}
    inputs["seed"] = torch.randint(-(2**62), 2**62, (R,), generator=generator)
    inputs["position"] = torch.randint(2**40, (R,), generator=generator)
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    found = draft_samples(**inputs)
    outputs = {"tokens": found.tokens, "probs": found.probs}
    return outputs if found.draft_probs is None else {**outputs, "draft_probs": found.draft_probs}


def reference(inputs: Inputs) -> Outputs:
    """The same whole numbers and noise in plain PyTorch."""
    found = reference_samples(**on_cpu(inputs))
    return {name: value.to(inputs["logits"].device) for name, value in found.items()}


def _composition_call(inputs: Inputs) -> Any:
    q = torch.softmax(inputs["logits"].float(), -1)
    tokens = torch.multinomial(q, inputs["k"])
    return tokens, q.gather(-1, tokens), q


def _variant(name: str, call: Callable[[Inputs], Any], peer: bool) -> Variant:
    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        return lambda: call(inputs)

    def nbytes(case: Case) -> float:  # logits in, probabilities out
        return float(6 * case.parameters["R"] * case.parameters["V"])

    return Variant(name, "forward", prepare, peer=peer, bytes=nbytes)


TABLE = OpTable(
    op="draft_samples",
    cases=_cases(),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=reference,  # tokens are equal or wrong; the numbers are the reference's bit for bit
    variants=(_variant("softmax, multinomial", _composition_call, True), _variant("tokcore", run, False)),
    goals=(Goal(_MAIN, "forward", "tokcore", "softmax, multinomial", 1.5),),
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in (
            "float32, bfloat16, float16",
            "children coupled, without_replacement, iid",
            "temperature, top_k, top_p, min_p, typical_mass",
            "options, seed and position per row",
            "k up to 64",
        )
    },
)
