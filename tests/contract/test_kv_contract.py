"""The KV cache's operators: registration, one error text from kernel and fake, and traced behaviour."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree

import tokcore

OPS = torch.ops.tokcore
B, L, Hkv, D, PAGE = 2, 100, 2, 64, 16


def cache_with(**options: Any) -> tokcore.QuantizedKVCache:
    torch.manual_seed(0)
    chosen = {"page_size": PAGE, "residual": 20, "sinks": 3, **options}
    cache = tokcore.QuantizedKVCache(1, B, Hkv, D, L + 50, **chosen)
    k = torch.randn(B, L, Hkv, D).to(cache.dtype)
    cache.append(0, k, k)
    return cache


def layer_arguments(**options: Any) -> dict[str, Any]:
    lengths, starts, recent, high, low, k_scale, v_scale = cache_with(**options).layer(0).operands()
    named = {"lengths": lengths, "window_starts": starts, "recent": recent, "high": high, "low": low}
    return {**named, "k_channel_scale": k_scale, "v_channel_scale": v_scale}


def with_tree(**change: Any) -> dict[str, Any]:
    """Arguments that make the queries of :func:`arguments` nodes."""
    parents = torch.tensor([[-1, 0]] * B, dtype=torch.int32)
    counts = torch.full((B,), 2, dtype=torch.int32)
    words, depths, _, _ = OPS.tree_links(parents, counts)
    return {"tree_ancestors": words, "tree_depths": depths, "tree_counts": counts, **change}


def compact_arguments(**options: Any) -> dict[str, Any]:
    """The last three tokens are the nodes of a chain, of which two are accepted."""
    lengths, starts, recent, high, low, k_scale, v_scale = cache_with(**options).stacked_operands()
    nodes = torch.tensor([[0, 1]] * B, dtype=torch.int32)
    parents = torch.tensor([[-1, 0, 1]] * B, dtype=torch.int32)
    tree = {"tree_parents": parents, "tree_counts": torch.full((B,), 3, dtype=torch.int32)}
    verdict = {"accepted_nodes": nodes, "accepted_counts": torch.full((B,), 2, dtype=torch.int32)}
    named = {"lengths": lengths, "window_starts": starts, "recent": recent, "high": high, "low": low}
    return {**verdict, **tree, **named, "k_channel_scale": k_scale, "v_channel_scale": v_scale}


def arguments(op: str, **options: Any) -> dict[str, Any]:
    """Good arguments of every operator."""
    if op == "kv_quantize":
        return {"x": torch.randn(2, 32, D), "bits": 4, "axis": "token", "group": 16}
    if op == "kv_dequantize":
        packed, scale, zero = OPS.kv_quantize(torch.randn(2, 32, D), 4, "token", 16)
        fixed = {"bits": 4, "axis": "token", "group": 16, "dtype": torch.float32}
        return {"packed": packed, "scale": scale, "zero": zero, **fixed}
    if op == "kv_saliency":
        q, k = torch.randn(B, 5, 4, D), torch.randn(B, 30, Hkv, D)
        positions = torch.arange(25, 30, dtype=torch.int32).repeat(B, 1)
        return {"q_probe": q, "k": k, "probe_positions": positions, "scale": 0.1}
    given = layer_arguments(**options)
    if op == "decode_attention":
        return {"q": torch.randn(B, 2, 4, D).bfloat16(), **given, "scale": 0.1}
    if op == "kv_retier":
        return {"scores": torch.randn(B, Hkv, L), "high_pages": torch.tensor([2, 3], dtype=torch.int32), **given}
    if op == "kv_compact":
        return compact_arguments(**options)
    k = torch.randn(30, Hkv, D).bfloat16()
    slots = torch.cat([torch.arange(L, L + 15), torch.arange(L, L + 15) + L + 50])
    sizes = {"capacity": L + 50, "residual": 20, "page_size": PAGE}
    return {"k": k, "v": k.clone(), "slot_mapping": slots, **given, **sizes}


@pytest.mark.parametrize(
    ("op", "change"),
    [
        ("kv_quantize", {}),
        ("kv_quantize", {"axis": "channel", "symmetric": True, "rotate": True, "channel_scale": torch.ones(2, D)}),
        ("kv_dequantize", {}),
        ("kv_saliency", {}),
        ("kv_saliency", {"reduce": "max", "gumbel_seed": 3, "temperature": 2.0}),
        ("decode_attention", {}),
        ("decode_attention", {"softcap": 5.0, "window": 40, "return_lse": True}),
        ("decode_attention", with_tree()),
        ("kv_append", {}),
        ("kv_retier", {}),
        ("kv_compact", {}),
    ],
)
def test_opcheck(op: str, change: dict[str, Any]) -> None:
    torch.library.opcheck(getattr(OPS, op), (), {**arguments(op), **change})


@pytest.mark.parametrize(
    "options",
    [{"high": "int8", "low": None}, {"high": None, "low": None}, {"k_axis": "channel", "v_axis": "channel"}],
    ids=str,
)
@pytest.mark.parametrize("op", ["decode_attention", "kv_append"])
def test_opcheck_of_other_caches(op: str, options: dict[str, Any]) -> None:
    axes = {name: options[name] for name in ("k_axis", "v_axis") if name in options}
    torch.library.opcheck(getattr(OPS, op), (), {**arguments(op, **options), **axes})


def replaced(tensors: list[Tensor], index: int, value: Tensor) -> list[Tensor]:
    return [value if i == index else tensor for i, tensor in enumerate(tensors)]


def table() -> list[tuple[str, dict[str, Any], str]]:
    given = layer_arguments()
    high, recent = given["high"], given["recent"]
    stacked = compact_arguments()
    cache_rows: list[tuple[dict[str, Any], str]] = [
        ({"recent": recent[:3]}, "argument 'recent': expected 4 tensors, got 3"),
        ({"high": high[:8]}, "argument 'high': expected 0 or 9 tensors, got 8"),
        ({"k_axis": "head"}, "argument 'k_axis': expected 'token' or 'channel', got 'head'"),
        ({"v_axis": "row"}, "argument 'v_axis': expected 'token' or 'channel', got 'row'"),
        (
            {"v_axis": "channel"},
            "argument 'high.v_scale': expected shape [8, 2, 1, 64] ([P, Hkv, page size / group, D]), got [8, 2, 1, 16]",
        ),
        (
            {"v_axis": "channel", "high": replaced(high, 4, torch.ones(8, 2, 3, D).bfloat16())},
            "argument 'high.v_scale': expected groups of 16, 32, 64 or 128 tokens of a page, got [8, 2, 3, 64]",
        ),
        (
            {"recent": replaced(recent, 1, recent[1].float())},
            "argument 'recent.window_v': expected dtype bfloat16, got float32",
        ),
        ({"lengths": given["lengths"].long()}, "argument 'lengths': expected dtype int32, got int64"),
        (
            {"high": replaced(high, 0, high[0].short())},
            "argument 'high.k_pages': expected dtype uint8 or bfloat16 of recent.window_k, got int16",
        ),
        ({"high": replaced(high, 2, high[2].float())}, "'high.k_scale': expected dtype bfloat16, got float32"),
        ({"high": replaced(high, 8, high[8].long())}, "argument 'high.positions': expected dtype int32 or uint16"),
        ({"lengths": given["lengths"][:1]}, "'lengths': expected shape [2] (B of recent.window_k), got [1]"),
        (
            {"high": replaced(high, 0, high[0][..., :40].contiguous())},
            "argument 'high.k_pages': expected D * bits / 8 bytes a row with bits 8, 4 or 2 and D = 64, got 40",
        ),
        (
            {"high": replaced(high, 2, high[2][:, :, :, :8].contiguous())},
            "argument 'high.k_scale': expected shape [8, 2, 1, 16] ([P, Hkv, D / group, page size])",
        ),
        (
            {"high": replaced(high, 6, high[6].t())},
            "argument 'high.page_table': expected shape [2, 2] ([B, width]), got [4, 2]",
        ),
        (
            {"recent": replaced(recent, 1, recent[1].transpose(0, 1).contiguous().transpose(0, 1))},
            "a contiguous tensor",
        ),
        ({"k_channel_scale": torch.ones(D)}, "argument 'k_channel_scale': expected shape [2, 64] ([Hkv, D]), got [64]"),
    ]
    rows = [
        (op, change, words) for op in ("decode_attention", "kv_append", "kv_retier") for change, words in cache_rows
    ]
    rows += [
        ("decode_attention", {"q": torch.zeros(B, 2, 4, D)}, "argument 'q': expected dtype bfloat16, got float32"),
        (
            "decode_attention",
            {"q": torch.zeros(B, 2, 3, D).bfloat16()},
            "argument 'q': expected H a positive multiple of 2 (Hkv), got 3",
        ),
        ("decode_attention", {"scale": float("inf")}, "argument 'scale': expected a finite value, got inf"),
        ("decode_attention", {"softcap": -1.0}, "argument 'softcap': expected a finite value > 0 or None, got -1"),
        ("decode_attention", {"window": 0}, "argument 'window': expected a value >= 1 or None, got 0"),
        (
            "decode_attention",
            with_tree(tree_depths=None),
            "'tree_depths': expected a Tensor with tree_ancestors, got None",
        ),
        (
            "decode_attention",
            with_tree(tree_ancestors=None, tree_depths=None),
            "argument 'tree_counts': expected None without tree_ancestors, got a Tensor",
        ),
        (
            "decode_attention",
            with_tree(tree_ancestors=torch.zeros(B, 2, 1)),
            "argument 'tree_ancestors': expected dtype int64, got float32",
        ),
        (
            "decode_attention",
            with_tree(tree_ancestors=torch.zeros(B, 2, 2, dtype=torch.int64)),
            "argument 'tree_ancestors': expected shape [2, 2, 1] ([B, M, ceil(M / 64)], B and M of q), got [2, 2, 2]",
        ),
        (
            "decode_attention",
            with_tree(tree_depths=torch.zeros(2, B, dtype=torch.int32).t()),
            "argument 'tree_depths': expected a contiguous tensor, got strides [1, 2]",
        ),
        (
            "decode_attention",
            with_tree(tree_counts=torch.zeros(1, dtype=torch.int32)),
            "argument 'tree_counts': expected shape [2] (B of q), got [1]",
        ),
        ("kv_append", {"v": torch.zeros(29, Hkv, D).bfloat16()}, "argument 'v': expected shape [30, 2, 64]"),
        ("kv_append", {"residual": 21}, "argument 'residual': expected a value in [0, 20] (W - page_size), got 21"),
        ("kv_append", {"page_size": 32, "residual": 0}, "argument 'page_size': expected 16 of the tiers, got 32"),
        ("kv_append", {"page_size": 20}, "argument 'page_size': expected 16, 32, 64 or 128, got 20"),
        ("kv_retier", {"low": []}, "argument 'low': expected a tier, got none"),
        (
            "kv_compact",
            {"lengths": torch.zeros(B, dtype=torch.int32)},
            "argument 'lengths': expected 2 dimensions, got 1",
        ),
        (
            "kv_compact",
            {"window_starts": torch.zeros(2, B, dtype=torch.int32)},
            "argument 'window_starts': expected a leading dimension of 1 layers, got [2, 2]",
        ),
        (
            "kv_compact",
            {"recent": replaced(stacked["recent"], 2, stacked["recent"][2].float())},
            "argument 'recent.sink_k': expected dtype bfloat16, got float32",
        ),
        (
            "kv_compact",
            {"high": replaced(stacked["high"], 6, stacked["high"][6].mT)},
            "argument 'high.page_table': expected a contiguous tensor, got strides",
        ),
        ("kv_compact", {"high": stacked["high"][:7]}, "argument 'high': expected 0 or 9 tensors, got 7"),
        (
            "kv_compact",
            {"accepted_counts": torch.zeros(B)},
            "argument 'accepted_counts': expected dtype int32, got float32",
        ),
        (
            "kv_compact",
            {"accepted_nodes": torch.zeros(3, 2, dtype=torch.int32)},
            "argument 'accepted_nodes': expected shape [2, 2] ([B, K], B of recent.window_k), got [3, 2]",
        ),
        (
            "kv_compact",
            {"tree_parents": torch.zeros(B, dtype=torch.int32)},
            "argument 'tree_parents': expected 2 dimensions, got 1",
        ),
        ("kv_retier", {"scores": torch.zeros(B, 1, L)}, "argument 'scores': expected shape [2, 2, 100] ([B, Hkv, N])"),
        ("kv_quantize", {"bits": 3}, "argument 'bits': expected 8, 4 or 2, got 3"),
        ("kv_quantize", {"axis": "row"}, "argument 'axis': expected 'token' or 'channel', got 'row'"),
        ("kv_quantize", {"group": 24}, "argument 'group': expected a positive divisor of 64 (D), got 24"),
        ("kv_quantize", {"axis": "channel", "group": 24}, "argument 'group': expected a positive divisor of 32 (N)"),
        ("kv_quantize", {"x": torch.zeros(2, 32, 3)}, "argument 'x': expected D a positive multiple of 2"),
        ("kv_quantize", {"x": torch.zeros(2, 32, D).double()}, "argument 'x': expected dtype float32 or bfloat16 or"),
        (
            "kv_quantize",
            {"x": torch.zeros(2, D, 32).mT},
            "argument 'x': expected stride 1 in the last dimension, got 32",
        ),
        ("kv_quantize", {"x": torch.zeros(2, 4, 48), "rotate": True}, "argument 'rotate': expected False unless D is"),
        ("kv_quantize", {"channel_scale": torch.ones(3, D)}, "argument 'channel_scale': expected shape [C, 64] with C"),
        ("kv_dequantize", {"bits": 5}, "argument 'bits': expected 8, 4 or 2, got 5"),
        ("kv_dequantize", {"dtype": torch.float64}, "argument 'dtype': expected dtype float32 or bfloat16 or float16"),
        ("kv_dequantize", {"symmetric": True}, "argument 'zero': expected shape [0] (empty when symmetric)"),
        (
            "kv_dequantize",
            {"group": 32},
            "argument 'scale': expected shape [2, 32, 2] ([M, N, D/group]), got [2, 32, 4]",
        ),
        (
            "kv_saliency",
            {"reduce": "mean"},
            "argument 'reduce': expected 'normalized_sum' or 'sum' or 'max' or 'decayed'",
        ),
        ("kv_saliency", {"decay": 1.5}, "argument 'decay': expected a value in (0, 1], got 1.5"),
        ("kv_saliency", {"temperature": 0.0}, "argument 'temperature': expected a finite value > 0, got 0"),
        (
            "kv_saliency",
            {"lse": torch.zeros(B, 4, 4)},
            "argument 'lse': expected shape [2, 4, 5] ([B, H, T] of q_probe)",
        ),
    ]
    return rows


@pytest.mark.parametrize(("op", "change", "words"), table(), ids=lambda value: value if isinstance(value, str) else "")
def test_kernel_and_fake_say_the_same(op: str, change: dict[str, Any], words: str) -> None:
    given = {**arguments(op), **change}
    with pytest.raises(RuntimeError) as from_kernel:
        getattr(OPS, op)(**given)
    mode = FakeTensorMode()
    fakes = pytree.tree_map(lambda x: mode.from_tensor(x) if isinstance(x, Tensor) else x, given)
    with pytest.raises(RuntimeError) as from_fake, mode:
        getattr(OPS, op)(**fakes)
    kernel, fake = (str(raised.value).splitlines()[0] for raised in (from_kernel, from_fake))
    assert words in kernel
    assert kernel.startswith(f"tokcore.{op}: argument '")
    assert re.sub(r"(?<=got )(-?\d+)\.0$", r"\1", fake) == kernel


@pytest.mark.parametrize(
    ("index", "value", "words"),
    [
        (0, -1, r"argument 'lengths': expected a value in \[0, 1073741824\], got -1 of sequence 1"),
        (1, 2, r"argument 'window_starts': expected a value in \[\d+, 1073741824\] .* got 2 of sequence 1"),
    ],
)
@pytest.mark.parametrize("op", ["decode_attention", "kv_append", "kv_retier"])
def test_bad_counts_raise_and_do_not_crash(op: str, index: int, value: int, words: str) -> None:
    given = arguments(op)
    given[("lengths", "window_starts")[index]][1] = value
    with pytest.raises(RuntimeError, match=words):
        getattr(OPS, op)(**given)


def test_bad_positions_raise_and_do_not_crash() -> None:
    given = arguments("kv_retier")
    given["high"][8][0, 0, 0] = 60000
    with pytest.raises(RuntimeError, match=r"argument 'high.positions': expected each of \[3, \d+\) once in a head"):
        OPS.kv_retier(**given)


def test_quantization_is_compiled_for_any_shape() -> None:
    def call(x: Tensor) -> Tensor:
        return tokcore.kv_quantize(x, 4, rotate=True).dequantize() + 1.0

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in range(2, 8):
        x = torch.randn(n, 3 * n, 64)
        assert torch.equal(compiled(x), call(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    torch._dynamo.reset()


def test_decoding_is_compiled_in_one_graph() -> None:
    cache = cache_with()
    operands = cache.layer(0).operands()

    def call(q: Tensor) -> Tensor:
        out: Tensor = OPS.decode_attention(q * 2.0, *operands, scale=0.1)[0]
        return out + 1.0

    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    q = torch.randn(B, 1, 4, D).bfloat16()
    assert torch.equal(compiled(q), call(q))
    torch._dynamo.reset()
