"""ldmatrix, mma.sync and cp.async: CuTe's wrappers call the emulation. A wrapper that has none fails by its name."""

from __future__ import annotations

import re

from rewrite import Function, Tree, include, rewrite_structs, set_body

MMA_HEADERS = ("cute/arch/mma_sm75.hpp", "cute/arch/mma_sm80.hpp", "cute/arch/mma_sm89.hpp")
EMULATED_MMA = re.compile(
    r"SM80_16x8x(8|16)_F32(F16F16|BF16BF16)F32_TN"
    r"|SM80_16x8x(4|8)_F32TF32TF32F32_TN"
    r"|SM80_8x8x4_F64F64F64F64_TN"
    r"|SM80_16x8x(16|32)_S32[SU]8[SU]8S32_TN"
    r"|SM89_16x8x32_F32E[45]M[23]E[45]M[23]F32_TN"
)


def wraps_instruction(function: Function) -> bool:
    """Not one that only calls others."""
    return "CUTE_INVALID_CONTROL_PATH" in function.body


def mma_body(function: Function) -> str | None:
    """Registers in arrays, one call, the result back in registers."""
    if not wraps_instruction(function):
        return None
    if not EMULATED_MMA.fullmatch(function.struct):
        return f'::tokcore::simt::unsupported("{function.struct}");'
    operands = {prefix: function.named(prefix) for prefix in "abcd"}
    lines = [
        f"const {function.type_of(names[0])} {prefix}_[] = {{{', '.join(names)}}};"
        for prefix, names in operands.items()
        if prefix != "d"
    ]
    results = operands["d"]
    lines.append(f"{function.type_of(results[0])} d_[{len(results)}];")
    lines.append(f"::tokcore::simt::mma(::tokcore::simt::MmaOp::k{function.struct}, d_, a_, b_, c_);")
    lines += [f"{name} = d_[{i}];" for i, name in enumerate(results)]
    return " ".join(lines)


def copy_body(function: Function) -> str | None:
    """ldmatrix and cp.async, with or without a predicate."""
    if not wraps_instruction(function):
        return None
    if "LDSM" in function.struct:
        results = function.named("dst")
        transposed = "true" if function.struct.endswith("_T") else "false"
        stores = " ".join(f"{name} = r_[{i}];" for i, name in enumerate(results))
        return (
            f"uint32_t r_[{len(results)}]; "
            f"::tokcore::simt::ldmatrix({len(results)}, {transposed}, &smem_src, r_); {stores}"
        )
    if "CP_ASYNC" in function.struct:
        valid = "pred ? sizeof(TS) : 0" if function.named("pred") else "sizeof(TS)"
        return f"::tokcore::simt::cp_async(&smem_dst, &gmem_src, sizeof(TS), {valid});"
    return f'::tokcore::simt::unsupported("{function.struct}");'


def generate(tree: Tree) -> None:
    """Writes the shadows of this file's headers and the list of the emulated mma instructions."""
    emulated: list[str] = []
    for path in MMA_HEADERS:
        text = tree.read(path)
        emulated += [name for name in re.findall(r"^struct\s+(\w+)", text, re.M) if EMULATED_MMA.fullmatch(name)]
        tree.write(path, include(rewrite_structs(text, mma_body), "simt/mma.h"))
    rows = " \\\n".join(f"  X({name})" for name in emulated)
    tree.write("simt_mma_ops.h", f"#pragma once\n#define TOKCORE_SIMT_MMA_OPS(X) \\\n{rows}\n")

    path = "cute/arch/copy_sm75.hpp"
    tree.write(path, include(rewrite_structs(tree.read(path), copy_body), "simt/ldmatrix.h"))

    path = "cute/arch/copy_sm80.hpp"
    text = rewrite_structs(tree.read(path), copy_body)
    text = set_body(text, "\ncp_async_fence()", "::tokcore::simt::cp_async_commit_group();")
    wait = (
        "if constexpr (N == 0) { ::tokcore::simt::cp_async_wait_all(); } "
        "else { ::tokcore::simt::cp_async_wait_group(N); }"
    )
    text = set_body(text, "\ncp_async_wait()", wait)
    tree.write(path, include(text, "simt/cp_async.h"))

    path = "cute/arch/util.hpp"
    text = set_body(
        tree.read(path),
        "\ncast_smem_ptr_to_uint(void const* const ptr)",
        "return ::tokcore::simt::shared_address(ptr);",
    )
    tree.write(path, include(text, "simt/memory.h"))

    # Every other wrapper of an instruction: what CuTe prints and goes on with must end the kernel.
    path = "cute/config.hpp"
    text = re.sub(
        r"#  define CUTE_INVALID_CONTROL_PATH\(x\) assert\(0 && x\); printf\(x\)\n",
        "#  define CUTE_INVALID_CONTROL_PATH(x) ::tokcore::simt::unsupported(__PRETTY_FUNCTION__)\n",
        tree.read(path),
    )
    tree.write(path, include(text, "simt/thread.h"))
