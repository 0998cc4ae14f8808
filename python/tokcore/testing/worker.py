"""Work in a process of its own: memory is measured in a fresh one, and each instruction-set level needs its own.

A worker is a module that reads one JSON request from standard input and prints one JSON object per line.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from tokcore.testing.table import OpTable

TABLES = "tokcore.testing:tables"  # "module:function" that returns the case tables by op name


class WorkerError(RuntimeError):
    """A worker ended without finishing its work; the text tells its exit status and the end of its error output."""


def load_tables(source: str = TABLES) -> dict[str, OpTable]:
    """The case tables that ``source`` ("module:function") returns."""
    module, _, function = source.partition(":")
    return cast(Callable[[], dict[str, OpTable]], getattr(importlib.import_module(module), function))()


def run_worker(
    module: str,
    request: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    seconds: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Starts ``python -m module`` with ``request`` and yields its answers as they come.

    ``environment`` is added to this process's. Raises WorkerError when the process fails, or is killed because it ran
    longer than ``seconds``.
    """
    search_path = os.pathsep.join(path for path in sys.path if path)
    variables = {**os.environ, "PYTHONPATH": search_path, **(environment or {})}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=variables,
        )
        assert process.stdin is not None  # both are pipes
        assert process.stdout is not None
        alarm = threading.Timer(threading.TIMEOUT_MAX if seconds is None else seconds, process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            process.stdin.write(json.dumps(request))
            process.stdin.close()
            for line in process.stdout:
                if line.startswith("{"):  # libraries may print too
                    yield json.loads(line)
            status = process.wait()
        except (BrokenPipeError, json.JSONDecodeError):
            process.kill()
            status = process.wait() or 1
        finally:
            alarm.cancel()
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
        if status != 0:
            errors.seek(0)
            raise WorkerError(_describe(status, errors.read()))


def _describe(status: int, errors: str) -> str:
    lines = [line for line in errors.splitlines() if line.strip()]
    cause = lines[-1] if lines else "no error output"
    return f"killed by signal {-status}: {cause}" if status < 0 else f"exit status {status}: {cause}"


def read_request() -> dict[str, Any]:
    """The request, in the worker."""
    return cast(dict[str, Any], json.load(sys.stdin))


def answer(**fields: Any) -> None:
    """One answer, in the worker."""
    print(json.dumps(fields), flush=True)
