"""The first stage: what this machine and this installation are."""

from __future__ import annotations

import shutil
import subprocess

from tokcore import _library
from tokcore.cli import environment
from tokcore.cli.gpu_check.stage import FAILED, PASSED, Context, Stage
from tokcore.testing import cuda

_QUERY = "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,power.limit"


def describe_machine(context: Context, seconds: float) -> Stage:
    """Passes where tokcore can run on the context's device."""
    described = environment.describe()
    lines = environment.headline(described).splitlines()
    lines += [f"library {name}: {state}" for name, state in _library.loaded.items()]
    for number, gpu in enumerate(described["cuda"].get("devices", [])):
        lines.append(f"GPU {number}: " + ", ".join(f"{name} {value}" for name, value in gpu.items()))
    state = _gpu_state(seconds)
    lines += [f"nvidia-smi: {state}"] if state else []
    reason = cuda.missing() if context.device == "cuda" else None
    if reason is not None:
        return Stage("machine", FAILED, [*lines, f"tokcore cannot run on a GPU here: {reason}"], described)
    return Stage("machine", PASSED, lines, {**described, "loaded": dict(_library.loaded), "nvidia_smi": state})


def _gpu_state(seconds: float) -> str | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={_QUERY}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=min(20.0, seconds))
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    values = done.stdout.strip().splitlines()
    return "; ".join(values)
