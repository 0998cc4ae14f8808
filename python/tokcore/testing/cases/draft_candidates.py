"""Case table of ``draft_candidates``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from tokcore.ops.draft_candidates import draft_candidates
from tokcore.reference.draft_candidates import draft_candidates as reference_candidates
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases._draft import case_of, generator_of
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, Variant

SHAPES = ((1, 1, 1), (3, 7, 7), (5, 127, 8), (2, 513, 64), (4, 4099, 8), (0, 9, 2), (1, 64, 3))
_MAIN = "R=81,V=32768,k=8,bf16"


def _cases() -> tuple[Case, ...]:
    cases = []
    for dtype, short in DTYPES.items():
        for index, (R, V, k) in enumerate(SHAPES):
            temperature = (1.0, 0.3, 4.0)[index % 3]
            label = f"R={R},V={V},k={k},T={temperature:g},{short}"
            cases.append(case_of(label, R=R, V=V, k=k, dtype=dtype, temperature=temperature))
        label = f"ties and infinities,{short}"
        cases.append(case_of(label, R=6, V=200, k=9, dtype=dtype, temperature=1.0, special=True))
    cases.append(case_of(_MAIN, "bench bench-cuda", R=81, V=32768, k=8, dtype=torch.bfloat16, temperature=1.0))
    return tuple(cases)


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Logits; in the special case rows of equal numbers, of infinities and of a NaN."""
    p = case.parameters
    logits = 4.0 * torch.randn(p["R"], p["V"], generator=generator_of(seed))
    if p.get("special"):
        logits[0] = 0.0
        logits[1] = float("-inf")
        logits[2, 3:] = float("-inf")
        logits[3, 150] = float("nan")
        logits[4] = logits[4].round()
        logits[5, ::2] = -0.0
        logits[5, 1::2] = 0.0
    return {"logits": logits.to(p["dtype"]).to(device), "k": p["k"], "temperature": p["temperature"]}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    tokens, probs = draft_candidates(**inputs)
    assert probs is not None
    return {"tokens": tokens, "probs": probs}


def reference(inputs: Inputs) -> Outputs:
    """fp64."""
    tokens, probs = reference_candidates(**inputs)
    return {"tokens": tokens, "probs": probs}


def composition(inputs: Inputs) -> Outputs:
    """The softmax in fp32."""
    tokens, probs = reference_candidates(**inputs, dtype=torch.float32)
    return {"tokens": tokens, "probs": probs}


def _eager(inputs: Inputs) -> Any:
    values, tokens = inputs["logits"].float().softmax(-1).topk(inputs["k"])
    return values, tokens


def _variant(name: str, call: Callable[[Inputs], Any], peer: bool) -> Variant:
    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        return lambda: call(inputs)

    return Variant(
        name, "forward", prepare, peer=peer, bytes=lambda case: 2.0 * case.parameters["R"] * case.parameters["V"]
    )


TABLE = OpTable(
    op="draft_candidates",
    cases=_cases(),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    variants=(_variant("softmax, topk", _eager, True), _variant("tokcore", run, False)),
    goals=(Goal(_MAIN, "forward", "tokcore", "softmax, topk", 4.0),),
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in ("float32, bfloat16, float16", "temperature", "without probabilities", "k up to 64")
    },
)
