"""Installs a wheel of tokcore for the length of one run and checks it on this machine's GPU.

    python scripts/gpu_check.py --wheel dist/tokcore-0.1.0-py3-none-linux_x86_64.whl --out results
    python scripts/gpu_check.py --out results          # the installed package, or else the wheel in dist/

Needs a Python with torch >= 2.11 for CUDA 13, and no network. Further options are those of
``python -m tokcore.cli.gpu_check``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def newest_wheel(folder: Path) -> Path | None:
    """The wheel that was built last."""
    return max(folder.glob("tokcore-*.whl"), key=lambda path: path.stat().st_mtime, default=None)


def check(package: Path | None, options: list[str]) -> int:
    """Runs the check on the package in the folder ``package``, or on the installed one."""
    variables = dict(os.environ)
    if package is not None:
        variables["PYTHONPATH"] = os.pathsep.join([str(package), *filter(None, [variables.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "tokcore.cli.gpu_check", *options]
    with tempfile.TemporaryDirectory() as elsewhere:  # not from the source tree, which has no libraries in it
        return subprocess.run(command, cwd=elsewhere, env=variables, check=False).returncode


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="the wheel to check")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    given, options = parser.parse_known_args()
    options = ["--out", str(given.out.resolve()), *options]
    wheel = given.wheel
    if wheel is None and importlib.util.find_spec("tokcore") is None:
        wheel = newest_wheel(ROOT / "dist")
        if wheel is None:
            sys.exit(
                "gpu_check: tokcore is not installed and dist/ holds no wheel: give one with --wheel, or make wheel"
            )
    if wheel is None:
        return check(None, options)
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)  # what an installation would do, without touching the environment
        return check(Path(folder), options)


if __name__ == "__main__":
    sys.exit(main())
