"""Reads the machine code of the CUDA library: ``python -m tokcore.testing.sass --library FILE [--write PAGE]``.

Local memory in a kernel means that registers were spilled or an array was indexed at run time; a tensor-core kernel
without tensor-core instructions, or without the asynchronous copies it was written around, was compiled into something
else than its source says. So was one whose warpgroup products wait for each other, or one of attention whose weights
wait for products that they were to be made beside. None of it shows in a result, so it is looked for here. Needs
cuobjdump, and c++filt of binutils; no GPU.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

COUNTED = ("HMMA", "IMMA", "HGMMA", "IGMMA", "LDSM", "LDGSTS", "UTMALDG", "UTMASTG", "MUFU", "BAR", "LDL", "STL")

_HEAD = """# CUDA kernels

Generated from the machine code of `libtokcore_cuda.so` by `make sass`, which fails when a kernel reads or writes local
memory or lacks the instructions that its name promises. Registers are per thread; shared memory is what the kernel
declares itself, what a launch adds stands in the design notes. The counts are of instructions in the code, not of
instructions executed: HMMA and IMMA multiply on tensor cores for a warp, HGMMA for a warpgroup, LDSM loads their
operands from shared memory, LDGSTS and UTMALDG copy from global to shared memory in the background, MUFU is the unit
of exp2 and reciprocals. On sm_90 the runtime's own kilobyte is counted into the shared memory.
"""


@dataclass
class Kernel:
    """One instantiation of a kernel for one architecture."""

    architecture: str  # "sm_80"
    name: str  # demangled, without return type, arguments and our outer namespace
    registers: int = 0
    shared_bytes: int = 0
    instructions: int = 0
    opcodes: Counter[str] = field(default_factory=Counter)  # of COUNTED
    tf32: bool = False  # multiplies tf32 fragments, which LDSM cannot load
    groups: int = 0  # of warpgroup products that are waited for together
    beside: int = 0  # MUFU while the newest group is still in flight

    @property
    def template(self) -> str:
        """The name without template arguments."""
        return self.name.split("<")[0]


def find_tool(name: str) -> str | None:
    """A CUDA tool: of the Python packages, on PATH, or of the toolkit in its usual place."""
    spec = importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.cu13")
    folders = [Path(folder) / "bin" for folder in (spec.submodule_search_locations or ())] if spec else []
    for folder in (*folders, Path("/usr/local/cuda/bin")):
        if (folder / name).is_file():
            return str(folder / name)
    return shutil.which(name)


def read_library(library: Path) -> list[Kernel]:
    """Every kernel in a shared library, sorted by name and architecture. Raises OSError without cuobjdump."""
    tool = find_tool("cuobjdump")
    if tool is None:
        raise OSError("no cuobjdump: install nvidia-cuda-cuobjdump (requirements-cuda.txt) or the CUDA toolkit")
    kernels = _read_code(_output(tool, "--dump-sass", str(library)).splitlines())
    _read_resources(kernels, _output(tool, "--dump-resource-usage", str(library)).splitlines())
    names = _demangle([name for _, name in kernels])
    for (_, mangled), kernel in kernels.items():
        kernel.name = names[mangled]
    return sorted(kernels.values(), key=lambda kernel: (kernel.name, kernel.architecture))


def _output(*command: str, text: str | None = None) -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


_ARCHITECTURE = re.compile(r"^arch = (sm_\w+)")
_FUNCTION = re.compile(r"^\s*Function :? ?([\w$]+):?")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([.A-Z0-9_]*)")
_WARPGROUP_PRODUCTS = ("HGMMA", "IGMMA")
_WEIGHTS_OF_A_LANE = 32  # 64 queries by 64 keys, by 128 threads
_RESOURCES = re.compile(r"REG:(\d+) .*SHARED:(\d+)")


def _read_code(lines: Iterable[str]) -> dict[tuple[str, str], Kernel]:
    kernels: dict[tuple[str, str], Kernel] = {}
    architecture, kernel = "", None
    in_flight = False  # products that a wait has left out
    for line in lines:
        if match := _ARCHITECTURE.match(line):
            architecture, kernel = match[1], None
        elif match := _FUNCTION.match(line):
            kernel = kernels[architecture, match[1]] = Kernel(architecture, match[1])
            in_flight = False
        elif kernel is not None and (match := _INSTRUCTION.match(line)):
            opcode, modifiers = match[1], match[2]
            kernel.instructions += opcode != "NOP"  # fills the end of the code up
            if opcode in COUNTED:
                kernel.opcodes[opcode] += 1
            kernel.tf32 |= opcode == "HMMA" and ".TF32" in modifiers
            if opcode == "WARPGROUP" and ".DEPBAR" in modifiers:
                in_flight = "0x0 ;" not in line
            kernel.beside += opcode == "MUFU" and in_flight
            kernel.groups += opcode in _WARPGROUP_PRODUCTS and "gsb0" in line
    return kernels


def _read_resources(kernels: dict[tuple[str, str], Kernel], lines: Iterable[str]) -> None:
    architecture, name = "", ""
    for line in lines:
        if match := _ARCHITECTURE.match(line):
            architecture = match[1]
        elif match := _FUNCTION.match(line):
            name = match[1]
        elif match := _RESOURCES.search(line):
            kernels[architecture, name].registers = int(match[1])
            kernels[architecture, name].shared_bytes = int(match[2])


def _demangle(names: Sequence[str]) -> dict[str, str]:
    demangled = _output("c++filt", text="\n".join(names)).splitlines()
    return {name: _short_name(long) for name, long in zip(names, demangled, strict=True)}


def _short_name(demangled: str) -> str:
    """``void tokcore::f<(tokcore::DType)1, true>(Params)`` -> ``f<(DType)1, true>``."""
    name = demangled.removeprefix("void ").replace("tokcore::", "").replace("(anonymous namespace)::", "")
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:place]
    return name


def problems(kernels: Sequence[Kernel]) -> Iterator[str]:
    """What is wrong with them, one line each."""
    if not kernels:
        yield "the library holds no kernel"
    for kernel in kernels:
        where = f"{kernel.name} ({kernel.architecture})"
        local = kernel.opcodes["LDL"] + kernel.opcodes["STL"]
        if local:
            yield f"{where}: {local} loads and stores of local memory"
        if "_sm90_" in kernel.name:
            yield from (f"{where}: no {opcode}" for opcode in _missing(kernel, _WARPGROUP_PRODUCTS, ("UTMALDG",)))
        products = sum(kernel.opcodes[opcode] for opcode in _WARPGROUP_PRODUCTS)
        if products > 1 and kernel.groups == products:  # ptxas does so when the accumulators are touched in between
            yield f"{where}: each of {products} warpgroup products is waited for before the next begins"
        # ptxas likes to move the wait for all products up to the one for all but the newest.
        if "attention_forward_sm90_" in kernel.name and kernel.beside < _WEIGHTS_OF_A_LANE:
            yield f"{where}: {kernel.beside} of {_WEIGHTS_OF_A_LANE} weights are made while products are in flight"
        if "_sm80_" in kernel.name:
            yield from (f"{where}: no {opcode}" for opcode in _missing(kernel, ("HMMA", "IMMA")))
    # Operands that are not aligned are loaded element by element, so these need not be in every instantiation.
    for template in sorted({kernel.template for kernel in kernels if "_sm80_" in kernel.template}):
        group = [kernel for kernel in kernels if kernel.template == template]
        if not any(kernel.opcodes["LDGSTS"] for kernel in group):
            yield f"{template}: no LDGSTS in any instantiation"
        if not any(kernel.opcodes["LDSM"] for kernel in group) and not all(kernel.tf32 for kernel in group):
            yield f"{template}: no LDSM in any instantiation"


def _missing(kernel: Kernel, *choices: Sequence[str]) -> list[str]:
    return [" or ".join(choice) for choice in choices if not any(kernel.opcodes[opcode] for opcode in choice)]


def render(kernels: Sequence[Kernel]) -> str:
    """The page: one table per architecture."""
    lines = [_HEAD]
    for architecture in sorted({kernel.architecture for kernel in kernels}):
        group = [kernel for kernel in kernels if kernel.architecture == architecture]
        counted = [opcode for opcode in COUNTED if any(kernel.opcodes[opcode] for kernel in group)]
        lines += [f"## {architecture}", "", _row(["kernel", "registers", "shared bytes", "instructions", *counted])]
        lines.append(_row(["---", *["---:"] * (3 + len(counted))]))
        for kernel in group:
            figures = [kernel.registers, kernel.shared_bytes, kernel.instructions]
            lines.append(_row([f"`{kernel.name}`", *map(str, [*figures, *(kernel.opcodes[o] for o in counted)])]))
        lines.append("")
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 when a kernel breaks a rule."""
    parser = argparse.ArgumentParser(prog="python -m tokcore.testing.sass", description=__doc__)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--write", type=Path, help="write the table of kernels to this file")
    options = parser.parse_args(arguments)
    kernels = read_library(options.library)
    if options.write is not None:
        options.write.write_text(render(kernels))
    found = list(problems(kernels))
    for problem in found:
        print(problem, file=sys.stderr)
    print(f"{len(kernels)} kernels in {options.library.name}, {len(found)} problems")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
