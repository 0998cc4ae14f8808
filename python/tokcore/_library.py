"""Loads the compiled kernels and tells what was loaded.

The operators live in ``libtokcore_cpu.so`` and, for a torch built with CUDA, ``libtokcore_cuda.so``, both beside this
file. Importing this module loads them once; :data:`loaded` says for each its path, or why it is not there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

loaded: dict[str, str] = {}
"""Library name -> the path it was loaded from, or the reason why it was not loaded."""

available: set[str] = set()
"""The names in :data:`loaded` whose operators can be called."""


def _load(name: str) -> None:
    path = Path(__file__).with_name(f"lib{name}.so")
    if not path.exists():
        loaded[name] = f"not loaded: no file {path.name} in {path.parent}"
        return
    try:
        torch.ops.load_library(str(path))  # type: ignore[no-untyped-call]
    except OSError as error:
        loaded[name] = f"not loaded: {error.__cause__ or error}"  # torch puts the loader's words into the cause
        return
    loaded[name] = str(path)
    available.add(name)


def _load_all() -> None:
    if hasattr(torch.ops.tokcore, "linear_logprobs_forward"):
        # Operators of this namespace that somebody registered before; loading the library too would define them twice.
        loaded["tokcore_cpu"] = "operators were registered before the import"
        available.add("tokcore_cpu")
    else:
        _load("tokcore_cpu")
    if "tokcore_cpu" not in available:
        raise ImportError(f"tokcore: no CPU kernels ({loaded['tokcore_cpu']}); install the wheel of tokcore")
    _load_cuda()


def _load_cuda() -> None:
    if torch.version.cuda is None:
        loaded["tokcore_cuda"] = f"not loaded: torch {torch.__version__} is built without CUDA"
    else:
        _load("tokcore_cuda")


def devices() -> tuple[str, ...]:
    """The device types whose tensors the operators take."""
    return ("cpu", "cuda") if "tokcore_cuda" in available else ("cpu",)


def devices_text(got: str) -> str:
    """:func:`devices` for an error text; where ``got`` is ``"cuda"``, with the reason why that is not among them."""
    text = " or ".join(devices())
    if got != "cuda" or "cuda" in devices():
        return text
    return f"{text} (cuda needs the library tokcore_cuda, which is {loaded['tokcore_cuda']})"


def cuda_devices() -> list[dict[str, str]]:
    """Each GPU that the CUDA library sees: name, capability, kernels, multiprocessors, memory_bytes, …"""
    if "tokcore_cuda" not in available:
        return []
    return [dict(_pairs(line.split("; "))) for line in torch.ops.tokcore.cuda_devices()]


def cuda_versions() -> dict[str, str]:
    """The versions of the CUDA runtime in the library and of what the driver offers; empty without the library."""
    return dict(_pairs(torch.ops.tokcore.cuda_versions())) if "tokcore_cuda" in available else {}


def _pairs(items: Iterable[str]) -> list[tuple[str, str]]:
    split = (item.partition("=") for item in items)
    return [(key, value) for key, _, value in split]


def cpu_isa() -> str:
    """The instruction-set level in use: ``"baseline"``, ``"avx2"``, ``"avx512"`` or ``"amx"``."""
    return str(torch.ops.tokcore.cpu_isa())


def cpu_isa_levels() -> tuple[str, ...]:
    """The instruction-set levels that this machine can run, lowest first; ``TOKCORE_MAX_ISA`` caps the choice."""
    return tuple(torch.ops.tokcore.cpu_isa_levels())


_load_all()
