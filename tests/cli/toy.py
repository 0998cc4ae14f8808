"""A case table small enough to bench, verify and measure within a test; workers find it as "toy:tables"."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch
from click.testing import Result
from torch import Tensor

import tokcore
from tokcore.testing.table import Case, Goal, Inputs, OpTable, Outputs, TimeGoal, Variant

Invoke = Callable[..., Result]  # the fixture: runs ``tokcore`` with these words


def _case(name: str, *tags: str, **parameters: Any) -> Case:
    return Case(name, {"T": 8, "C": 4, "V": 16, "dtype": torch.float32, **parameters}, frozenset(tags))


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """e, c, and what the case wants to go wrong."""
    generator = torch.Generator().manual_seed(seed)
    shape = case.parameters
    e = torch.randn(shape["T"], shape["C"], generator=generator, dtype=shape["dtype"])
    c = torch.randn(shape["V"], shape["C"], generator=generator, dtype=shape["dtype"])
    return {
        "e": e.to(device).requires_grad_(),
        "c": c.to(device).requires_grad_(),
        "trouble": shape.get("trouble"),
    }


def composition(inputs: Inputs) -> Outputs:
    """e c^T in the inputs' dtype."""
    return {"product": (inputs["e"] @ inputs["c"].T).detach()}


def reference(inputs: Inputs) -> Outputs:
    """e c^T in fp64."""
    return {"product": (inputs["e"].double() @ inputs["c"].double().T).detach()}


def product(e: Tensor, c: Tensor) -> Tensor:
    """The public function of the op; where it is looked up as one, it is found as one."""
    return (e @ c.T).detach()


tokcore.toy = product  # type: ignore[attr-defined]


def run(inputs: Inputs) -> Outputs:
    """e c^T, or the trouble that the case asks for."""
    if inputs["trouble"] == "raise":
        raise ValueError("tokcore.toy: argument 'e': expected peace, got trouble")
    if inputs["trouble"] == "crash":
        os._exit(3)
    offset = 1.0 if inputs["trouble"] == "wrong" else 0.0
    return {"product": tokcore.toy(inputs["e"], inputs["c"]) + offset}  # type: ignore[attr-defined]


def forward(case: Case, inputs: Inputs) -> Callable[[], Outputs]:
    """The forward pass."""
    return lambda: run(inputs)


def backward(case: Case, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """The forward pass and both gradients."""

    def call() -> tuple[Tensor, ...]:
        loss = (inputs["e"] @ inputs["c"].T).square().sum()
        return torch.autograd.grad(loss, [inputs["e"], inputs["c"]])

    return call


def hungry(case: Case, inputs: Inputs) -> Callable[[], Tensor]:
    """Touches 64 MiB and returns one MiB."""

    def call() -> Tensor:
        torch.ones(64 << 20, dtype=torch.uint8)
        return torch.ones(1 << 20, dtype=torch.uint8)

    return call


def broken(case: Case, inputs: Inputs) -> Callable[[], Any]:
    """A peer that raises when called."""
    raise RuntimeError("no such kernel\nwith a second line")


def flops(case: Case) -> float:
    """Of the product."""
    return 2.0 * case.parameters["T"] * case.parameters["C"] * case.parameters["V"]


VARIANTS = (
    Variant("tokcore", "forward", forward, peer=False, flops=flops),
    Variant("torch", "forward", forward, flops=flops),
    Variant("absent", "forward", forward, unavailable=lambda case: "not installed"),
    Variant("broken", "forward", broken),
    Variant("tokcore", "forward+backward", backward, peer=False, flops=flops),
    Variant("torch", "forward+backward", backward, flops=flops, slow=True),
)

TABLE = OpTable(
    op="toy",
    cases=(
        _case("small,fp32", "verify", "bench"),
        _case("wide,bf16", "verify", V=4096, dtype=torch.bfloat16),
    ),
    make_inputs=make_inputs,
    run=run,
    reference=reference,
    composition=composition,
    variants=VARIANTS,
    goals=(
        Goal("small,fp32", "forward", "tokcore", "torch", 1e-9),
        Goal("small,fp32", "forward", "tokcore", "absent", 2.0),
        TimeGoal("small,fp32", "forward", "tokcore", "a GPU", 1.0),
    ),
    support={"bias": {"cpu": "yes", "cuda": "no: not yet"}, "a|b": {"cpu": "fp32 only"}},
)

TROUBLED = dataclasses.replace(
    TABLE,
    op="troubled",
    cases=(
        _case("good", "verify"),
        _case("raises", "verify", trouble="raise"),
        _case("crashes", "verify", trouble="crash"),
        _case("wrong", "verify", trouble="wrong"),
        _case("good again", "verify", "bench"),
    ),
    goals=(Goal("good again", "forward", "tokcore", "torch", 1e9),),
    support={},
)

HUNGRY = dataclasses.replace(
    TABLE,
    op="hungry",
    cases=(_case("not verified", "bench"),),
    variants=(Variant("tokcore", "forward", hungry, peer=False),),
    goals=(),
)


IDLE = dataclasses.replace(
    TABLE,
    op="idle",
    cases=TABLE.cases[:1],
    variants=(Variant("tokcore", "forward", forward, peer=False, applies=lambda case: False),),
    goals=(),
)


def crashing_when_timed(case: Case, inputs: Inputs) -> Callable[[], Outputs]:
    """Ends the process with the first case, is fine with the others."""
    if case.parameters.get("trouble") == "crash":
        os._exit(3)
    return lambda: {"product": composition(inputs)["product"]}


CRASHING = dataclasses.replace(
    TABLE,
    op="crashing",
    cases=(_case("crashes", "bench", trouble="crash"), _case("good", "bench")),
    variants=(
        Variant("tokcore", "forward", crashing_when_timed, peer=False, flops=flops),
        Variant("tokcore", "left out", forward, peer=False, applies=lambda case: False),
    ),
    goals=(),
)


def crashing() -> dict[str, OpTable]:
    """One whose first timed case ends the process, and one without trouble behind it."""
    return {CRASHING.op: CRASHING, TABLE.op: TABLE}


def sound() -> dict[str, OpTable]:
    """Those without trouble."""
    return {TABLE.op: TABLE}


def tables() -> dict[str, OpTable]:
    """All of them."""
    return {table.op: table for table in (TABLE, TROUBLED, HUNGRY, IDLE)}
