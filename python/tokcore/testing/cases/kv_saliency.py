"""Case table of ``kv_saliency``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import tokcore
from tokcore.reference.kv_saliency import kv_saliency as reference_saliency
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, Variant

# B, T, Hkv, G, N, D
SHAPES = (
    (1, 1, 1, 1, 1, 32),
    (2, 7, 2, 4, 65, 64),
    (1, 40, 2, 1, 257, 96),
    (2, 13, 1, 8, 130, 128),
    (1, 3, 3, 2, 33, 40),
    (1, 300, 1, 1, 300, 64),
    (2, 0, 1, 2, 9, 64),
)
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "sum": {"reduce": "sum"},
    "max": {"reduce": "max"},
    "decayed": {"reduce": "decayed", "decay": 0.97},
    "cls": {"cls": True},
    "lse": {"given_lse": True},
    "gumbel": {"gumbel_seed": 77, "temperature": 1.5},
    "scale": {"scale": 0.4, "reduce": "sum"},
}
_PASSED = ("reduce", "decay", "gumbel_seed", "temperature", "scale")


def _cases() -> tuple[Case, ...]:
    cases: dict[str, Case] = {}
    for index, (dtype, short) in enumerate(DTYPES.items()):
        for n, (name, chosen) in enumerate(OPTIONS.items()):
            for turn in range(2):
                B, T, Hkv, G, N, D = SHAPES[(n + 3 * turn + index) % len(SHAPES)]
                label = ",".join(filter(None, (f"B={B},T={T},Hkv={Hkv},G={G},N={N},D={D}", short, name)))
                sizes = {"B": B, "T": T, "Hkv": Hkv, "G": G, "N": N, "D": D, "dtype": dtype}
                cases[label] = Case(label, {**sizes, **chosen}, frozenset({"verify", "quick"}))
    sizes = {"B": 1, "T": 410, "Hkv": 8, "G": 4, "N": 4096, "D": 128, "dtype": torch.bfloat16}
    cases[_MAIN] = Case(_MAIN, sizes, frozenset({"bench", "bench-cuda"}))
    return tuple(cases.values())


_MAIN = "B=1,T=410,Hkv=8,G=4,N=4096,D=128,bf16"


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Recent and random probes, one of them absent; tensors and options by argument name."""
    p = case.parameters
    generator = torch.Generator().manual_seed(seed)
    B, T, Hkv, G, N, D = (p[name] for name in ("B", "T", "Hkv", "G", "N", "D"))
    q = torch.randn(B, T, Hkv * G, D, generator=generator)
    k = torch.randn(B, N, Hkv, D, generator=generator)
    positions = torch.randint(N, (B, T), generator=generator)
    if p.get("cls"):
        positions[:] = N - 1
    elif T > 1:
        positions[:, -(T // 2) :] = torch.arange(N - T // 2, N).clamp(min=0)
        positions[0, 0] = -1
    inputs: Inputs = {"q_probe": q.to(p["dtype"]).to(device), "k": k.to(p["dtype"]).to(device)}
    inputs["probe_positions"] = positions.to(torch.int32).to(device)
    inputs |= {name: p[name] for name in _PASSED if name in p}
    if p.get("given_lse"):
        inputs["lse"] = torch.randn(B, Hkv * G, T, generator=generator).add(7.0).to(device)
    return inputs


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    return {"scores": tokcore.kv_saliency(**inputs)}


def reference(inputs: Inputs) -> Outputs:
    """fp64."""
    return {"scores": reference_saliency(**inputs)}


def composition(inputs: Inputs) -> Outputs:
    """The product in the inputs' dtype, everything after it in fp32."""
    dtype = inputs["q_probe"].dtype
    return {"scores": reference_saliency(**inputs, dtype=torch.float32, product_dtype=dtype)}


def _eager(inputs: Inputs) -> Outputs:
    return {"scores": reference_saliency(**inputs, dtype=torch.float32, product_dtype=inputs["q_probe"].dtype)}


def _flops(case: Case) -> float:
    p = case.parameters
    return float(4 * p["B"] * p["T"] * p["Hkv"] * p["G"] * p["N"] * p["D"])


def _variant(name: str, call: Callable[[Inputs], Outputs], peer: bool) -> Variant:
    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        return lambda: call(inputs)

    return Variant(name, "forward", prepare, peer=peer, slow=peer, flops=_flops)


TABLE = OpTable(
    op="kv_saliency",
    cases=_cases(),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    variants=(_variant("attention matrix", _eager, True), _variant("tokcore", run, False)),
    goals=(Goal(_MAIN, "forward", "tokcore", "attention matrix", 2.0),),
    support={
        option: {"cpu": "yes", "cuda": "yes"}
        for option in (
            "float32, bfloat16, float16",
            "reduce",
            "decay",
            "temperature",
            "gumbel_seed",
            "lse",
            "probes of different positions, absent probes",
        )
    },
)
