"""What a result depends on besides the code: the machine, the software, the commit and the date."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import tokcore
from tokcore import _library


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name as the kernel tells it."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip()
    return platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Physical memory, where the system tells it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def git_commit(folder: Path | None = None) -> str | None:
    """The commit of the git tree that holds the package, with "-dirty" after it when tracked files differ from it."""
    folder = folder or Path(tokcore.__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        commit = git("rev-parse", "HEAD")
        return commit + ("-dirty" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def gpu_names() -> list[str]:
    """The GPUs that torch sees."""
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def cuda() -> dict[str, Any]:
    """What the CUDA library says of its runtime, the driver and each GPU; empty where it is not loaded."""
    versions = _library.cuda_versions()
    return {**versions, "devices": _library.cuda_devices()} if versions else {}


def variables() -> dict[str, str]:
    """The TOKCORE_* environment variables that are set."""
    return {name: value for name, value in sorted(os.environ.items()) if name.startswith("TOKCORE_")}


def describe() -> dict[str, Any]:
    """Everything above, ready for JSON."""
    return {
        "tokcore": tokcore.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "memory_bytes": memory_bytes(),
        "isa": _library.cpu_isa(),
        "isa_levels": list(_library.cpu_isa_levels()),
        "threads": torch.get_num_threads(),
        "gpus": gpu_names(),
        "cuda": cuda(),
        "libraries": sorted(_library.available),
        "variables": variables(),
        "commit": git_commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def headline(environment: dict[str, Any]) -> str:
    """The environment in two lines, for the head of a report; a third one for the GPUs where there are any."""
    commit, cuda = environment["commit"], environment["cuda"]
    gpus = f"\n{' + '.join(environment['gpus'])} · CUDA {cuda['runtime']}, driver {cuda['driver']}" if cuda else ""
    return (
        f"{environment['cpu']} · {environment['cpu_count']} CPUs · level {environment['isa']}"
        f" · {environment['threads']} threads\n"
        f"tokcore {environment['tokcore']} · torch {environment['torch']} · python {environment['python']}"
        f" · {'commit ' + commit[:12] + commit[40:] if commit else 'no commit'} · {environment['date']}{gpus}"
    )


def reproduction(arguments: Sequence[str]) -> str:
    """A shell command that runs ``tokcore`` with these arguments under the same TOKCORE_* variables."""
    assignments = [f"{name}={shlex.quote(value)}" for name, value in variables().items()]
    return " ".join([*assignments, "tokcore", *(shlex.quote(argument) for argument in arguments)])
