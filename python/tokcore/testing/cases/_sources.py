"""Where the numbers of a case come from, and which packages its peers need."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch

from tokcore.testing.table import Case

H200 = "NVIDIA H200"  # the GPU that goals of the CUDA kernels are about


def random_source(case: Case, device: str, seed: int) -> torch.Generator:
    """A generator on the device to draw on: the CPU for what is compared everywhere, so that the numbers are the same;
    of a benchmark the device itself, which makes billions of them in no time."""
    return torch.Generator("cpu" if "verify" in case.tags else device).manual_seed(seed)


def not_importable(module: str) -> Callable[[Case], str | None]:
    """A reason why a peer cannot run: its module is not there, or does not load here."""

    def reason(_: Case) -> str | None:
        try:
            importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:
            lines = str(error).strip().splitlines()
            return f"{module} cannot be imported: {lines[0] if lines else type(error).__name__}"
        return None

    return reason
