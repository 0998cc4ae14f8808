"""Loads the compiled kernels and tells what was loaded.

The operators live in ``libtokcore_cpu.so`` and, for a torch built with CUDA, ``libtokcore_cuda.so``, both beside this
file. Importing this module loads them once; :data:`loaded` says for each its path, or why it is not there.
"""

from __future__ import annotations

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
        loaded[name] = f"not loaded: {error}"
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
    if torch.version.cuda is None:
        loaded["tokcore_cuda"] = f"not loaded: torch {torch.__version__} is built without CUDA"
    else:
        _load("tokcore_cuda")


def devices() -> tuple[str, ...]:
    """The device types whose tensors the operators take."""
    return ("cpu", "cuda") if "tokcore_cuda" in available else ("cpu",)


def cpu_isa() -> str:
    """The instruction-set level in use: ``"baseline"``, ``"avx2"``, ``"avx512"`` or ``"amx"``."""
    return str(torch.ops.tokcore.cpu_isa())


def cpu_isa_levels() -> tuple[str, ...]:
    """The instruction-set levels that this machine can run, lowest first; ``TOKCORE_MAX_ISA`` caps the choice."""
    return tuple(torch.ops.tokcore.cpu_isa_levels())


_load_all()
