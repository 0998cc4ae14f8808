"""Case table of ``sample``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tokcore
from tokcore.reference.sample import sample as reference_sample
from tokcore.testing.cases import _flashinfer
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.table import Case, Goal, Inputs, MemoryGoal, OpTable, Outputs, Variant

SHAPES = ((1, 1), (3, 7), (2, 33), (4, 513), (1, 4099), (0, 9))  # B, V
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "greedy": {"temperature": 0.0},
    "temperature": {"temperature": 0.6},
    "top-k": {"top_k": 5},
    "top-p": {"top_p": 0.8, "temperature": 1.7},
    "min-p": {"min_p": 0.05},
    "typical": {"typical_mass": 0.7},
    "grammar": {"grammar": True},
    "penalties": {"penalised": True},
    "per request": {"each": True, "penalised": True},
    "all": {"top_k": 40, "top_p": 0.9, "min_p": 0.001, "typical_mass": 0.9, "grammar": True, "penalised": True},
}
_PASSED = ("temperature", "top_k", "top_p", "min_p", "typical_mass")
_MAIN = "B=8,V=131072,bf16"


def _cases() -> tuple[Case, ...]:
    cases: dict[str, Case] = {}
    for i, (dtype, short) in enumerate(DTYPES.items()):
        for n, (name, chosen) in enumerate(OPTIONS.items()):
            for turn in range(2):
                B, V = SHAPES[(n + 3 * turn + i) % len(SHAPES)]
                label = ",".join(filter(None, (f"B={B},V={V}", short, name)))
                parameters = {"B": B, "V": V, "dtype": dtype, **chosen}
                cases[label] = Case(label, parameters, frozenset({"verify", "quick"}))
    for B, tags in ((8, {"bench", "bench-cuda"}), (1, {"bench"}), (64, {"bench-cuda"})):
        label, parameters = f"B={B},V=131072,bf16", {"B": B, "T": B, "V": 131072, "dtype": torch.bfloat16}
        cases[label] = Case(label, parameters, frozenset(tags))
    return tuple(cases.values())


def sampling_options(p: Any, rows: tuple[int, ...], generator: torch.Generator) -> dict[str, Any]:
    """Options that a case asks for; ``rows`` are the leading dimensions of the logits."""
    B, V = rows[0], p["V"]
    options: dict[str, Any] = {name: p[name] for name in _PASSED if name in p}
    if p.get("penalised"):
        counts = torch.randint(4, (B, V), generator=generator) - 2
        options["token_counts"] = counts.clamp(min=0).to(torch.int32)
        options |= {"repetition_penalty": 1.2, "presence_penalty": 0.3, "frequency_penalty": 0.1}
    if p.get("grammar"):
        words = torch.randint(-(2**31), 2**31, (*rows, (V + 31) // 32), generator=generator)
        options["allowed_bits"] = (words | 1).to(torch.int32)
    if p.get("each"):
        options["temperature"] = torch.rand(B, generator=generator).mul(2).to(torch.float64)
        options["top_k"] = torch.randint(1, 50, (B,), generator=generator)
        options["top_p"] = torch.rand(B, generator=generator).clamp(min=0.1)
        options["repetition_penalty"] = torch.rand(B, generator=generator) + 0.5
    return options


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Peaked logits, some of them -inf, seeds and positions by request."""
    p = case.parameters
    generator = torch.Generator().manual_seed(seed)
    B, V = p["B"], p["V"]
    logits = 4.0 * torch.randn(B, V, generator=generator)
    logits[:, 1::13] = float("-inf")
    inputs: Inputs = {"logits": logits.to(p["dtype"])}
    inputs["seed"] = torch.randint(-(2**62), 2**62, (B,), generator=generator)
    inputs["position"] = torch.randint(10**6, (B,), generator=generator)
    inputs |= sampling_options(p, (B,), generator)
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    token, logprob, entropy, varentropy, _ = tokcore.sample(**inputs, return_entropy=True)
    assert entropy is not None
    assert varentropy is not None
    return {"token": token, "logprob": logprob, "entropy": entropy, "varentropy": varentropy}


def on_cpu(inputs: Inputs) -> Inputs:
    """For references, which go number by number."""
    return {name: value.cpu() if isinstance(value, Tensor) else value for name, value in inputs.items()}


def reference(inputs: Inputs) -> Outputs:
    """The same whole numbers and noise in plain PyTorch."""
    found = reference_sample(**on_cpu(inputs), return_entropy=True)
    return {name: value.to(inputs["logits"].device) for name, value in found.items()}


def _composition_call(inputs: Inputs) -> Any:
    """What one writes without tokcore: probabilities, then a draw from them."""
    logits = inputs["logits"].float()
    p = torch.softmax(logits, -1)
    token = torch.multinomial(p, 1)
    logp = torch.log_softmax(logits, -1)
    return token, logp.gather(-1, token), -(p * logp.clamp(min=-1e4)).sum(-1)


def _variant(name: str, call: Callable[[Inputs], Any], peer: bool) -> Variant:
    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        return lambda: call(inputs)

    return Variant(name, "forward", prepare, peer=peer, bytes=_bytes)


def _bytes(case: Case) -> float:
    p = case.parameters
    return float(p["B"] * p["V"] * p["dtype"].itemsize)


TABLE = OpTable(
    op="sample",
    cases=_cases(),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=reference,  # tokens are equal or wrong; the numbers are the reference's bit for bit
    variants=(
        _variant("softmax + multinomial", _composition_call, True),
        Variant(
            "FlashInfer sampling_from_logits",
            "forward",
            _flashinfer.sample,
            unavailable=_flashinfer.unavailable,
            bytes=_bytes,
            backends=("cuda",),
        ),
        _variant("tokcore", run, False),
    ),
    goals=(
        Goal(_MAIN, "forward", "tokcore", "softmax + multinomial", 2.0),
        Goal("B=1,V=131072,bf16", "forward", "tokcore", "softmax + multinomial", 2.0),
        MemoryGoal(_MAIN, "forward", "tokcore", "share_of_logits", 0.5),
    ),
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in (
            "float32, bfloat16, float16",
            "temperature, top_k, top_p, min_p, typical_mass",
            "repetition_penalty, presence_penalty, frequency_penalty",
            "allowed_bits",
            "options, seed and position per request",
            "entropy, varentropy",
        )
    },
)
