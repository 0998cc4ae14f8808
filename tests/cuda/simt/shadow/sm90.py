"""mbarrier, TMA, wgmma, named barriers, clusters: the wrappers of CuTe and CUTLASS call the emulation.

A wrapper that has none fails by its name; so does every function that would otherwise skip its instruction in silence.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewrite import Tree, body_span, include, set_body

SIMT = "::tokcore::simt::"
GMMA_HEADERS = ("cute/arch/mma_sm90_gmma.hpp", "cute/arch/mma_sm90_gmma_ext.hpp")
TMA_HEADER = "cute/arch/copy_sm90_tma.hpp"
# Folders whose functions wrap instructions.
WRAPPERS = ("cute/arch", "cutlass/arch")

# ---- wgmma ----------------------------------------------------------------------------------------------------------

GMMA_NAME = re.compile(
    r"MMA_64x(?P<n>\d+)x\d+_(?P<d>F16|F32|S32)"
    r"(?:(?P<same>TF32TF32|BF16BF16|F16F16)|(?P<a>E4M3|E5M2|S8|U8)(?P<b>E4M3|E5M2|S8|U8))"
    r"_(?P<source>SS|RS)(?P<tn>_TN)?(?P<saturate>_SATURATE)?"
)


def gmma_op(name: str, has_scale: bool) -> str:
    """The WgmmaOp of a struct as an initialiser; its template parameters are in scope there."""
    match = GMMA_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"unknown wgmma instruction {name}")
    same = match["same"]
    a = same[: len(same) // 2] if same else match["a"]
    b = a if same else match["b"]
    major = "false" if match["tn"] else "tnsp{} == GMMA::Major::MN"
    negated = "scale{} == GMMA::ScaleIn::Neg" if has_scale else "false"
    return (
        f'{{"{name}", {match["n"]}, {SIMT}WgmmaType::k{match["d"]}, {SIMT}WgmmaType::k{a}, {SIMT}WgmmaType::k{b}, '
        f"{'true' if match['source'] == 'RS' else 'false'}, {major.format('A')}, {major.format('B')}, "
        f"{negated.format('A')}, {negated.format('B')}, {'true' if match['saturate'] else 'false'}}}"
    )


def rewrite_gmma(text: str) -> str:
    """Registers as pointers, one call."""
    edits = []
    pattern = r"template <(?P<template>[^{}]*?)>\s*struct (?P<name>MMA_\w+)\s*\{|struct (?P<plain>MMA_\w+)\s*\{"
    for match in re.finditer(pattern, text):
        name = match["name"] or match["plain"]
        at = text.index("fma(", match.end())
        close = text.index(")", at)
        parameters = text[at:close]
        accumulators = re.findall(r"&\s*(d\d+)\b", parameters)
        fragments = re.findall(r"&\s*(a\d+)\b", parameters)
        op = gmma_op(name, has_scale="scaleA" in (match["template"] or ""))
        lines = [
            f"static constexpr {SIMT}WgmmaOp op_ = {op};",
            f"void* const d_[] = {{{', '.join('&' + d for d in accumulators)}}};",
        ]
        if fragments:
            lines.append(f"uint32_t const* const a_[] = {{{', '.join('&' + a for a in fragments)}}};")
        source = "a_" if fragments else "desc_a"
        lines.append(f"{SIMT}wgmma(op_, d_, {source}, desc_b, scale_D == GMMA::ScaleOut::One);")
        begin, end = body_span(text, close)
        edits.append((begin, end, "{ " + " ".join(lines) + " }"))
    return replace_spans(text, edits)


# ---- TMA ------------------------------------------------------------------------------------------------------------


def tma_call(struct: str, prefetch: bool, coordinates: str) -> str | None:
    """What the copy function of a struct that wraps a TMA instruction does."""
    corner = f"{{{coordinates}}}"
    if prefetch:
        if struct == "SM90_BULK_COPY_G2S":
            return "bulk_prefetch(gmem_ptr, load_bytes)"
        return f"tma_prefetch(desc_ptr, {corner})" if re.fullmatch(r"SM90_TMA_LOAD_\dD", struct) else None
    calls = {
        r"SM90_TMA_LOAD_\dD": f"tma_load(desc_ptr, mbar_ptr, smem_ptr, {corner})",
        r"SM90_TMA_LOAD_MULTICAST_\dD": f"tma_load_multicast(desc_ptr, mbar_ptr, multicast_mask, smem_ptr, {corner})",
        r"SM90_TMA_STORE_\dD": f"tma_store(desc_ptr, smem_ptr, {corner})",
        r"SM90_TMA_REDUCE_ADD_\dD": f"tma_reduce_add(desc_ptr, smem_ptr, {corner})",
        r"SM90_BULK_COPY_G2S": "bulk_load(gmem_ptr, mbar_ptr, smem_ptr, load_bytes)",
        r"SM90_BULK_COPY_S2G": "bulk_store(smem_ptr, gmem_ptr, store_bytes)",
    }
    return next((call for pattern, call in calls.items() if re.fullmatch(pattern, struct)), None)


def rewrite_tma(text: str) -> str:
    """The copy functions that hold an instruction; im2col keeps its failure by name."""
    edits = []
    struct = ""
    for match in re.finditer(r"^struct\s+(\w+)|^(\s+)copy\(([^)]*)\)", text, re.M):
        if match[1]:
            struct = match[1]
            continue
        begin, end = body_span(text, match.end())
        if "asm volatile" not in text[begin:end]:
            continue
        coordinates = ", ".join(re.findall(r"\b(crd\d)\b", match[3]))
        call = tma_call(struct, "prefetch" in text[begin:end], coordinates)
        if call is not None:
            edits.append((begin, end, f"{{ {SIMT}{call}; }}"))
    return replace_spans(text, edits)


# ---- single functions -----------------------------------------------------------------------------------------------

# Header -> what its functions do now, by their signatures. `static` members of one name differ in their parameters.
FUNCTIONS: dict[str, dict[str, str]] = {
    "cute/arch/mma_sm90_gmma.hpp": {
        "warpgroup_arrive()": "wgmma_fence();",
        "warpgroup_wait()": "wgmma_wait_group(N);",
        "warpgroup_commit_batch()": "wgmma_commit_group();",
    },
    TMA_HEADER: {
        "tma_store_fence()": "fence_proxy_async();",
        "tma_store_arrive()": "bulk_commit_group();",
        "tma_desc_commit_group()": "bulk_commit_group();",
        "tma_store_wait()": "bulk_wait_group(Count, true);",
        "tma_desc_wait_group()": "bulk_wait_group(0, true);",
    },
    "cute/arch/copy_sm90_desc.hpp": {
        "initialize_barrier(uint64_t& smem_barrier,": "mbarrier_init(&smem_barrier, thread_count);",
        "set_barrier_transaction_bytes(uint64_t& smem_barrier,": "mbarrier_arrive_expect_tx(&smem_barrier, bytes);",
        "wait_barrier(uint64_t& smem_barrier,": "mbarrier_wait(&smem_barrier, phase_bit);",
        "arrive_barrier(uint64_t& smem_barrier)": "mbarrier_arrive(&smem_barrier);",
        "prefetch_tma_descriptor(TmaDescriptor const* desc_ptr)": "tma_prefetch_map(desc_ptr);",
    },
    "cute/arch/copy_sm90.hpp": {
        f"struct SM90_{name}": f"stmatrix({matrices}, {transposed}, &smem_dst, r_);"
        for name, matrices, transposed in (
            ("U32x1_STSM_N", 1, "false"),
            ("U32x2_STSM_N", 2, "false"),
            ("U32x4_STSM_N", 4, "false"),
            ("U16x2_STSM_T", 1, "true"),
            ("U16x4_STSM_T", 2, "true"),
            ("U16x8_STSM_T", 4, "true"),
        )
    },
    "cute/arch/cluster_sm90.hpp": {
        "void cluster_arrive_relaxed()": "cluster_arrive(/*relaxed=*/true);",
        "void cluster_arrive()": "cluster_arrive();",
        "void cluster_wait()": "cluster_wait();",
        "void cluster_sync()": "cluster_arrive(); cluster_wait();",
        "dim3 cluster_grid_dims()": "return cluster_grid_dims();",
        "dim3 cluster_id_in_grid()": "return cluster_id_in_grid();",
        "dim3 block_id_in_cluster()": "return block_id_in_cluster();",
        "dim3 cluster_shape()": "return cluster_shape();",
        "uint32_t block_rank_in_cluster()": "return block_rank_in_cluster();",
        "uint32_t set_block_rank(uint32_t smemAddr, uint32_t rank)": "return map_shared(smemAddr, rank);",
        "uint32_t elect_one_sync()": "return elect_one_sync();",
        "elect_one_leader_sync()": "const auto e = elect(); return {e.is_this_lane, e.lane};",
    },
    "cutlass/arch/barrier.h": {
        "static void arrive_and_wait_internal(uint32_t num_threads, uint32_t barrier_id)": (
            "named_barrier_sync(barrier_id, num_threads);"
        ),
        "static void arrive_internal(uint32_t num_threads, uint32_t barrier_id)": (
            "named_barrier_arrive(barrier_id, num_threads);"
        ),
        "static void init(ValueType const* smem_ptr, uint32_t arrive_count)": "mbarrier_init(smem_ptr, arrive_count);",
        "static void wait(ValueType const* smem_ptr, uint32_t phase)": "mbarrier_wait(smem_ptr, phase);",
        "static bool test_wait(ValueType const* smem_ptr, uint32_t phase, uint32_t pred)": (
            "return pred != 0 && mbarrier_test_wait(smem_ptr, phase);"
        ),
        "static bool try_wait(ValueType const* smem_ptr, uint32_t phase)": (
            "return mbarrier_test_wait(smem_ptr, phase);"
        ),
        "static void arrive(ValueType const* smem_ptr, uint32_t cta_id, uint32_t pred)": (
            "if (pred != 0) mbarrier_arrive_remote(smem_ptr, cta_id);"
        ),
        "static void arrive(ValueType const* smem_ptr)": "mbarrier_arrive(smem_ptr);",
        "static void invalidate(ValueType const* smem_ptr)": "mbarrier_inval(smem_ptr);",
        "static void arrive_and_expect_tx(ValueType const* smem_ptr, uint32_t transaction_bytes)": (
            "mbarrier_arrive_expect_tx(smem_ptr, transaction_bytes);"
        ),
        "ValueType const* smem_ptr, uint32_t transaction_bytes, uint32_t cta_id, uint32_t pred)": (
            "if (pred != 0) mbarrier_arrive_expect_tx_remote(smem_ptr, transaction_bytes, cta_id);"
        ),
        "static void expect_transaction(ValueType const* smem_ptr, uint32_t transaction_bytes)": (
            "mbarrier_expect_tx(smem_ptr, transaction_bytes);"
        ),
        "ValueType const* smem_ptr, uint32_t dst_cta_id, uint32_t transaction_bytes, uint32_t pred = 1)": (
            "if (pred != 0) mbarrier_complete_tx_remote(smem_ptr, transaction_bytes, dst_cta_id);"
        ),
        "void fence_barrier_init()": "publish_mbarriers();",
        "\nvoid fence_view_async_shared()": "fence_proxy_async();",
    },
    "cutlass/arch/reg_reconfig.h": {
        "void warpgroup_reg_alloc()": "increase_registers(RegCount);",
        "void warpgroup_reg_dealloc()": "decrease_registers(RegCount);",
    },
    "cutlass/arch/grid_dependency_control.h": {
        "void launch_dependent_grids()": "launch_dependent_grids();",
        "void wait_on_dependent_grids()": "wait_on_dependent_grids();",
    },
    # These hold no instruction; compiled for the host they return 0.
    "cutlass/cutlass.h": {
        "int canonical_lane_idx()": "return canonical_lane_idx();",
        "int canonical_warp_idx_sync()": "return canonical_warp_idx_sync();",
        "int canonical_warp_idx()": "return canonical_warp_idx();",
        "int canonical_warp_group_idx()": "return canonical_warp_group_idx();",
    },
}


def qualified(body: str) -> str:
    """The emulation's functions by their full names."""
    return re.sub(r"(?<![\w:])(?!if\b|return\b)([a-z_]\w*)\(", SIMT + r"\1(", body)


def rewrite_functions(path: str, text: str) -> str:
    """Applies FUNCTIONS; a signature that is gone is an error of the generator, not a silent loss."""
    for signature, body in FUNCTIONS.get(path, {}).items():
        if signature.startswith("struct "):
            begin = text.index(signature + "\n")
            at = text.index("copy(", begin)
            sources = re.findall(r"\b(src\d?)\b", text[at : text.index(")", at)])
            new = f"const uint32_t r_[] = {{{', '.join(sources)}}}; {qualified(body)}"
            text = set_body(text, "copy(", new, begin)
        else:
            text = set_body(text, signature, qualified(body), definition(text, signature))
    return text


def without_unused_includes(text: str) -> str:
    """grid_dependency_control.h asks for headers that it has no use for and that only nvcc compiles."""
    return re.sub(r'#include "cutlass/(conv|gemm)/dispatch_policy.hpp"\n', "", text)


def definition(text: str, signature: str) -> int:
    """Where the signature is followed by a body, not by a semicolon."""
    at = text.find(signature)
    while at >= 0:
        end = at + len(signature)
        if re.match(r"[^;{]*\{", text[end:]):
            return at
        at = text.find(signature, end)
    raise ValueError(f"no definition of {signature!r}")


# ---- everything else ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scope:
    """One pair of braces."""

    begin: int
    end: int
    head: str  # the text that leads to it


def blank(text: str) -> str:
    """The same text without comments and string contents, every character in its place."""
    pattern = r"//[^\n]*|/\*.*?\*/|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])'"
    return re.sub(pattern, lambda m: re.sub(r"[^\n]", " ", m[0]), text, flags=re.S)


def functions_with(instruction: str, text: str) -> list[Scope]:
    """The functions whose bodies hold the word."""
    plain = blank(text)
    found: dict[int, Scope] = {}
    stack: list[tuple[int, str]] = []
    head_start = 0
    marks = {m.start() for m in re.finditer(instruction, plain)}
    closing: list[tuple[int, int]] = []
    for match in re.finditer(r"[{};]|" + instruction, plain):
        at = match.start()
        if match[0] == "{":
            stack.append((at, plain[head_start:at]))
            head_start = at + 1
        elif match[0] == "}":
            if not stack:
                raise ValueError("unbalanced braces")
            begin, head = stack.pop()
            if begin in {b for b, _ in closing}:
                found[begin] = Scope(begin, at + 1, head)
            head_start = at + 1
        elif match[0] == ";":
            head_start = at + 1
        elif at in marks:
            for begin, head in stack:
                if is_function_head(head):
                    closing.append((begin, at))
                    break
            else:
                raise ValueError(f"an instruction outside of a function, at character {at}")
    return list(found.values())


def is_function_head(head: str) -> bool:
    """Whether braces after this text are a function's body."""
    lines = [line for line in head.splitlines() if not line.lstrip().startswith("#")]
    return re.search(r"\)\s*(?:const)?\s*(?:noexcept)?\s*(?::[^:].*)?$", " ".join(lines)) is not None


def fail_by_name(text: str) -> str:
    """Functions that hold an instruction and would do nothing on the host."""
    edits = []
    for scope in functions_with(r"\basm\b", text):
        body = text[scope.begin : scope.end]
        # An empty asm only orders the compiler's work. CuTe's macro has been given an end by name.
        if "CUTE_INVALID_CONTROL_PATH" in body or not re.search(r'asm\s*(?:volatile)?\s*\(\s*"\s*[^"\s]', body):
            continue
        edits.append((scope.begin, scope.end, f"{{ {SIMT}unsupported(__PRETTY_FUNCTION__); }}"))
    return replace_spans(text, edits)


def replace_spans(text: str, edits: list[tuple[int, int, str]]) -> str:
    """Exchanges [begin, end) for new text, for all edits at once."""
    parts = []
    at = 0
    for begin, end, new in sorted(edits):
        parts += [text[at:begin], new]
        at = end
    return "".join([*parts, text[at:]])


def generate(tree: Tree) -> None:
    """Writes the shadows of the headers that wrap instructions and are not rewritten yet."""
    for path in GMMA_HEADERS:
        tree.write(path, include(rewrite_gmma(tree.read(path)), "simt/wgmma.h"))
    tree.write(TMA_HEADER, rewrite_tma(tree.read(TMA_HEADER)))
    for path in FUNCTIONS:
        tree.write(path, include(rewrite_functions(path, tree.read(path)), "simt/hopper.h"))
    path = "cutlass/arch/grid_dependency_control.h"
    tree.write(path, without_unused_includes(tree.read(path)))
    for folder in WRAPPERS:
        for file in sorted((tree.source / folder).iterdir()):
            path = f"{folder}/{file.name}"
            text = tree.read(path)
            changed = fail_by_name(text) if re.search(r"\basm\b", text) else text
            if changed != text:
                tree.write(path, include(changed, "simt/thread.h"))
