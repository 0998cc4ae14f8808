"""Benchmark cases, contestants and goals of the classifier ops."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tokcore
from tokcore.testing.cases._classifier import DTYPES
from tokcore.testing.cases._sources import H200, not_importable
from tokcore.testing.table import Case, Goal, Inputs, MemoryGoal, TimeGoal, Variant

FORWARD, TRAINING = "forward", "forward+backward"
MAIN = "T=1024,C=1024,V=32768"
LINEAR, EAGER = "F.linear", "F.linear+F.cross_entropy"
CHUNKED, COMPILED = "F.linear_cross_entropy (options)", "F.linear_cross_entropy (compiled)"
CUT, CUT_TRITON = "cut-cross-entropy (torch_compile)", "cut-cross-entropy (Triton)"
EAGER_COMPILED, LIGER = "F.linear+F.cross_entropy (compiled)", "Liger fused linear cross-entropy"
GEMMA, LLAMA = "T=8192,C=2304,V=256000", "T=8192,C=4096,V=128256"


def bench_cases() -> tuple[Case, ...]:
    """Training shapes peaked and not, decode-like ones, a large vocabulary; and those of two models, for a GPU."""
    fp32, bf16, fp16 = DTYPES
    main = {"T": 1024, "C": 1024, "V": 32768}
    gemma, llama = {"T": 8192, "C": 2304, "V": 256000}, {"T": 8192, "C": 4096, "V": 128256}
    plans: list[tuple[str, dict[str, Any], torch.dtype, str]] = [
        (MAIN, main, bf16, "bench"),
        (f"{MAIN},peaked", {**main, "peaked": True}, bf16, "bench"),
        (MAIN, main, fp32, "bench"),
        (MAIN, main, fp16, "large"),
        ("T=1,C=1024,V=32768", {**main, "T": 1}, bf16, "large"),
        ("T=64,C=1024,V=32768", {**main, "T": 64}, bf16, "large"),
        ("T=1024,C=512,V=256000", {"T": 1024, "C": 512, "V": 256000}, bf16, "large"),
        ("T=1024,C=512,V=256000,peaked", {"T": 1024, "C": 512, "V": 256000, "peaked": True}, bf16, "large"),
        (GEMMA, gemma, bf16, "bench-cuda"),
        (f"{GEMMA},peaked", {**gemma, "peaked": True}, bf16, "bench-cuda"),
        (LLAMA, llama, bf16, "bench-cuda"),
        ("T=64,C=4096,V=128256", {**llama, "T": 64}, bf16, "bench-cuda"),
    ]
    return tuple(
        Case(
            f"{name},{DTYPES[dtype]}",
            {**parameters, "dtype": dtype, "grad": ("e", "c")},
            frozenset({tag}),
        )
        for name, parameters, dtype, tag in plans
    )


def _gemm_flops(factor: int) -> Callable[[Case], float]:
    def flops(case: Case) -> float:
        p = case.parameters
        return float(factor * p["T"] * p["V"] * p["C"])

    return flops


def _operand_bytes(case: Case) -> float:
    p = case.parameters
    return float((p["T"] + p["V"]) * p["C"] * p["dtype"].itemsize)


def _forward(name: str, call: Callable[[Inputs], dict[str, Tensor]], **fields: Any) -> Variant:
    """A contestant that computes ``call`` without gradients."""

    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        def timed() -> dict[str, Tensor]:
            with torch.no_grad():
                return call(inputs)

        return timed

    return Variant(name, FORWARD, prepare, flops=_gemm_flops(2), bytes=_operand_bytes, **fields)


def _training(name: str, loss: Callable[[Inputs], Tensor], flops: int = 6, **fields: Any) -> Variant:
    """A contestant that computes a loss and its gradients; ``flops`` counts T·V·C, of matrix products alone."""

    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        wanted = {f"grad_{name}": inputs[name] for name in "ec" if inputs[name].requires_grad}

        def timed() -> dict[str, Tensor]:
            value = loss(inputs)
            grads = torch.autograd.grad(value, list(wanted.values()))
            return {"loss": value.detach(), **dict(zip(wanted, grads, strict=True))}

        return timed

    return Variant(name, TRAINING, prepare, flops=_gemm_flops(flops), **fields)


def _tokcore_loss(**options: Any) -> Callable[[Inputs], Tensor]:
    def loss(inputs: Inputs) -> Tensor:
        result = tokcore.linear_cross_entropy(inputs["e"], inputs["c"], inputs["targets"], **options)
        return result[0] if isinstance(result, tuple) else result

    return loss


def _named_loss(loss: Callable[[Inputs], Tensor]) -> Callable[[Inputs], dict[str, Tensor]]:
    return lambda inputs: {"loss": loss(inputs)}


def _eager(inputs: Inputs) -> Tensor:
    return F.cross_entropy(F.linear(inputs["e"], inputs["c"]).float(), inputs["targets"])


def _no_torch_op(_: Case) -> str | None:
    if hasattr(F, "linear_cross_entropy") and hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return None
    return f"torch {torch.__version__} has no F.linear_cross_entropy with options"


def _torch_chunked(inputs: Inputs) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(inputs["e"], inputs["c"], inputs["targets"], options=options)


@cache
def _compiled() -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    compiled: Callable[[Tensor, Tensor, Tensor], Tensor] = torch.compile(F.linear_cross_entropy)
    return compiled


def _torch_compiled(inputs: Inputs) -> Tensor:
    return _compiled()(inputs["e"], inputs["c"], inputs["targets"])


def _no_cut_cross_entropy(_: Case) -> str | None:
    if importlib.util.find_spec("cut_cross_entropy") is None:
        return "the package cut-cross-entropy is not installed"
    return None


@cache
def _cut_cross_entropy() -> Callable[..., Tensor]:
    """The package's CPU implementation. Its own __init__ needs Triton on Linux, which this implementation does not."""
    if importlib.util.find_spec("triton") is None and "cut_cross_entropy" not in sys.modules:
        spec = importlib.util.find_spec("cut_cross_entropy")
        assert spec is not None  # _no_cut_cross_entropy comes first
        package = types.ModuleType("cut_cross_entropy")
        package.__spec__ = spec
        package.__path__ = list(spec.submodule_search_locations or ())
        sys.modules["cut_cross_entropy"] = package
    module = importlib.import_module("cut_cross_entropy.torch_compile")
    implementation: Callable[..., Tensor] = module.torch_compile_linear_cross_entropy
    return implementation


def _cut(inputs: Inputs) -> Tensor:
    return _cut_cross_entropy()(inputs["e"], inputs["c"], inputs["targets"])


@cache
def _compiled_eager() -> Callable[[Inputs], Tensor]:
    compiled: Callable[[Inputs], Tensor] = torch.compile(_eager)
    return compiled


def _eager_compiled(inputs: Inputs) -> Tensor:
    return _compiled_eager()({name: inputs[name] for name in ("e", "c", "targets")})


def _cut_triton(inputs: Inputs) -> Tensor:
    module = importlib.import_module("cut_cross_entropy")
    loss: Tensor = module.linear_cross_entropy(inputs["e"], inputs["c"], inputs["targets"], impl="cce")
    return loss


def _liger(inputs: Inputs) -> Tensor:
    module = importlib.import_module("liger_kernel.transformers.fused_linear_cross_entropy")
    loss: Tensor = module.LigerFusedLinearCrossEntropyLoss()(inputs["c"], inputs["e"], inputs["targets"])
    return loss


_GPU_PEERS: dict[str, tuple[Callable[[Inputs], Tensor], Callable[[Case], str | None]]] = {
    EAGER_COMPILED: (_eager_compiled, lambda _: None),
    CUT_TRITON: (_cut_triton, not_importable("cut_cross_entropy")),
    LIGER: (_liger, not_importable("liger_kernel.transformers.fused_linear_cross_entropy")),
}


def _no_chunked(_: Case) -> str | None:
    exists = hasattr(torch.ops.tokcore, "linear_cross_entropy_chunked")
    return None if exists else "strategy='chunked' has no kernel here"


def loss_variants() -> tuple[Variant, ...]:
    """The contestants of ``linear_cross_entropy``; the filtered one runs on unpeaked inputs too, to show its cost."""
    exact, entropy = {"filter_eps": None}, {"filter_eps": None, "return_entropy": True}
    return (
        _forward(LINEAR, lambda inputs: {"logits": F.linear(inputs["e"], inputs["c"])}),
        _forward(EAGER, _named_loss(_eager)),
        _forward(CHUNKED, _named_loss(_torch_chunked), unavailable=_no_torch_op, slow=True),
        _forward(COMPILED, _named_loss(_torch_compiled), unavailable=_no_torch_op),
        _forward(CUT, _named_loss(_cut), unavailable=_no_cut_cross_entropy),
        *(
            _forward(name, _named_loss(loss), unavailable=unavailable, backends=("cuda",))
            for name, (loss, unavailable) in _GPU_PEERS.items()
        ),
        _forward("tokcore forward", _named_loss(_tokcore_loss(**exact)), peer=False),
        _forward("tokcore forward with entropy", _named_loss(_tokcore_loss(**entropy)), peer=False),
        _training(EAGER, _eager),
        _training(CHUNKED, _torch_chunked, unavailable=_no_torch_op, slow=True),
        _training(COMPILED, _torch_compiled, unavailable=_no_torch_op),
        _training(CUT, _cut, unavailable=_no_cut_cross_entropy),
        *(
            _training(name, loss, unavailable=unavailable, backends=("cuda",))
            for name, (loss, unavailable) in _GPU_PEERS.items()
        ),
        _training("tokcore exact", _tokcore_loss(**exact), peer=False),
        _training("tokcore recompute", _tokcore_loss(**exact, strategy="recompute"), 8, peer=False),
        _training("tokcore chunked", _tokcore_loss(**exact, strategy="chunked"), peer=False, unavailable=_no_chunked),
        _training(
            "tokcore chunked, 1 GiB",
            _tokcore_loss(**exact, strategy="chunked", workspace_bytes=1 << 30),
            peer=False,
            unavailable=_no_chunked,
            backends=("cuda",),
        ),
        _training("tokcore filtered", _tokcore_loss(filter_eps=2.0**-12), 8, peer=False),
        _training("tokcore exact with entropy", _tokcore_loss(**entropy), peer=False),
    )


def loss_goals() -> tuple[Goal | MemoryGoal | TimeGoal, ...]:
    """Ratios on a CPU, memory, and times on an H200."""
    bf16, fp32, peaked = f"{MAIN},bf16", f"{MAIN},fp32", f"{MAIN},peaked,bf16"
    return (
        Goal(bf16, FORWARD, "tokcore forward", LINEAR, 2.5, 3.5),
        Goal(bf16, FORWARD, "tokcore forward with entropy", "tokcore forward", 1 / 1.03),
        Goal(bf16, TRAINING, "tokcore exact", EAGER, 2.0, 2.5),
        Goal(bf16, TRAINING, "tokcore exact", CHUNKED, 8.0),
        Goal(peaked, TRAINING, "tokcore filtered", EAGER, 4.0),
        Goal(fp32, TRAINING, "tokcore exact", EAGER, 1.1),
        TimeGoal(f"{GEMMA},bf16", FORWARD, "tokcore forward", H200, 12.9e-3),
        TimeGoal(f"{GEMMA},bf16", TRAINING, "tokcore recompute", H200, 52e-3),
        TimeGoal(f"{GEMMA},bf16", TRAINING, "tokcore chunked, 1 GiB", H200, 38e-3),
        TimeGoal(f"{GEMMA},peaked,bf16", TRAINING, "tokcore filtered", H200, 26e-3, 20e-3),
        TimeGoal(f"{LLAMA},bf16", TRAINING, "tokcore chunked, 1 GiB", H200, 34e-3),
        Goal(f"{GEMMA},bf16", FORWARD, "tokcore forward with entropy", "tokcore forward", 1 / 1.03, backend="cuda"),
        MemoryGoal(bf16, FORWARD, "tokcore forward", "share_of_logits", 0.03),
        MemoryGoal(bf16, TRAINING, "tokcore exact", "share_of_logits", 0.03),
        MemoryGoal("T=1024,C=512,V=256000,bf16", TRAINING, "tokcore exact", "times_lower_bound", 1.2),
    )


def _tokcore_logprobs(**options: Any) -> Callable[[Inputs], dict[str, Tensor]]:
    def call(inputs: Inputs) -> dict[str, Tensor]:
        chosen = dict(options)
        if "gather" in chosen:
            # Neighbours of the target, [..., K]: as spread over the vocabulary as the targets are.
            steps = torch.arange(1, chosen["gather"] + 1, device=inputs["targets"].device)
            chosen["gather"] = (inputs["targets"].unsqueeze(-1) + 97 * steps) % inputs["c"].size(0)
        result = tokcore.linear_logprobs(inputs["e"], inputs["c"], inputs["targets"], **chosen)
        return {name: value for name, value in result._asdict().items() if value is not None}

    return call


def _eager_logprobs(inputs: Inputs) -> dict[str, Tensor]:
    z = F.linear(inputs["e"], inputs["c"]).float()
    lse = z.logsumexp(-1)
    return {"logprob": z.gather(-1, inputs["targets"].unsqueeze(-1)).squeeze(-1) - lse, "lse": lse}


def _has_eight(case: Case) -> bool:
    return bool(case.parameters["V"] >= 8)


def logprobs_variants() -> tuple[Variant, ...]:
    """The contestants of ``linear_logprobs``."""
    return (
        _forward(LINEAR, lambda inputs: {"logits": F.linear(inputs["e"], inputs["c"])}),
        _forward("F.linear+logsumexp+gather", _eager_logprobs),
        _forward("tokcore forward", _tokcore_logprobs(), peer=False),
        _forward("tokcore with entropy", _tokcore_logprobs(entropy=True), peer=False),
        _forward("tokcore with 8 gathered", _tokcore_logprobs(gather=8), peer=False, applies=_has_eight),
        _forward("tokcore with top-8", _tokcore_logprobs(topk=8), peer=False, applies=_has_eight),
    )


def logprobs_goals() -> tuple[Goal, ...]:
    """What each extra output may cost on top of the forward."""
    limits = {"tokcore with entropy": 1.03, "tokcore with 8 gathered": 1.03, "tokcore with top-8": 1.1}
    return tuple(
        Goal(case, FORWARD, name, "tokcore forward", 1 / limit, backend=backend)
        for backend, case in (("cpu", f"{MAIN},bf16"), ("cuda", f"{GEMMA},bf16"))
        for name, limit in limits.items()
    )
