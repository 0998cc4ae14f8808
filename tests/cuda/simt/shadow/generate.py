"""Writes copies of CuTe and CUTLASS headers in which the wrappers of PTX instructions call the emulation.

usage: generate.py <CUTLASS include directory> <output directory>
The output directory precedes CUTLASS on the include path; the kernels' own sources stay as nvcc sees them.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

from rewrite import Tree


def main(source: Path, out: Path) -> None:
    """Rewrites everything, in the order of the architectures: a later one may build on an earlier one."""
    shutil.rmtree(out, ignore_errors=True)
    tree = Tree(source, out)
    for module in sorted(Path(__file__).parent.glob("sm*.py")):
        importlib.import_module(module.stem).generate(tree)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
