"""The attention ops keep the contracts of every op: registration, compile, export, one error text everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import tokcore
from tokcore import BlockMask

B, H, HKV, M, N, D = 1, 2, 1, 70, 130, 40
ROWS, COLUMNS = 2, 3


def heads(dtype: torch.dtype = torch.float32, grad: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, H, M, D), (B, HKV, N, D), (B, HKV, N, D))
    q, k, v = (torch.randn(*shape, generator=generator).to(dtype).requires_grad_(grad) for shape in shapes)
    return q, k, v


def mask(heads_of_mask: int = H) -> BlockMask:
    dense = torch.rand(1, heads_of_mask, ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)) < 0.7
    return BlockMask.from_dense(dense, shape=(M, N))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
def test_opcheck_of_the_forward(dtype: torch.dtype, causal: bool) -> None:
    options = {"scale": 0.2, "causal": causal}
    # Rows without weights would compare -inf with -inf times 0 in the gradients.
    arguments = (*heads(dtype, grad=True), BlockMask.full((M, N)).bits, 64, 64)
    torch.library.opcheck(torch.ops.tokcore.block_sparse_attention_forward, arguments, options)


@pytest.mark.parametrize("needs", [(True, True, True), (True, False, False), (False, True, False), (False,) * 3])
@pytest.mark.parametrize("with_lse", [False, True])
def test_opcheck_of_the_backward(needs: tuple[bool, bool, bool], with_lse: bool) -> None:
    q, k, v = heads()
    bits = mask().bits
    out, lse = torch.ops.tokcore.block_sparse_attention_forward(q, k, v, bits, 64, 64, scale=0.2)
    grad_lse = (torch.randn(B, H, M),) if with_lse else ()
    torch.library.opcheck(
        torch.ops.tokcore.block_sparse_attention_backward,
        (torch.randn(B, H, M, D), q, k, v, out, lse, bits, 64, 64, *grad_lse),
        {"scale": 0.2, **dict(zip(("need_q", "need_k", "need_v"), needs, strict=True))},
    )


@pytest.mark.parametrize("stat", ["sum", "max", "count_above", "incoherence"])
def test_opcheck_of_the_scores(stat: str) -> None:
    q, k, _ = heads()
    torch.library.opcheck(
        torch.ops.tokcore.attention_block_scores, (q, k, 64, 128), {"scale": 0.2, "causal": True, "stat": stat}
    )


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def test_shapes_take_at_most_two_compilations() -> None:
    def call(q: Tensor, k: Tensor, v: Tensor, bits: Tensor) -> Tensor:
        block_mask = BlockMask(bits, (64, 64), shape=(q.size(2), k.size(2)))
        out, lse = tokcore.block_sparse_attention(q, k, v, block_mask, causal=True, return_lse=True)
        return out.sum() + lse.sum()

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for i in range(8):
        m, n = 70 + 67 * i, 140 + 131 * i
        generator = torch.Generator().manual_seed(i)
        leaves = [
            torch.randn(2 + i % 3, count, length, 40, generator=generator).requires_grad_()
            for count, length in ((4, m), (2, n), (2, n))
        ]
        bits = BlockMask.full((m, n)).bits
        got, expected = compiled(*leaves, bits), call(leaves[0], leaves[1], leaves[2], bits)
        torch.testing.assert_close(got, expected)
        for a, b in zip(torch.autograd.grad(got, leaves), torch.autograd.grad(expected, leaves), strict=True):
            torch.testing.assert_close(a, b)
    assert 1 <= int(torch._dynamo.utils.counters["stats"]["unique_graphs"]) <= 2


def test_a_mask_made_outside_compiles_too() -> None:
    q, k, v = heads()
    block_mask = mask()
    compiled = torch.compile(tokcore.block_sparse_attention, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v, block_mask), tokcore.block_sparse_attention(q, k, v, block_mask))
    scores = torch.compile(tokcore.attention_block_scores, fullgraph=True, backend="aot_eager")
    assert torch.equal(scores(q, k, stat="max"), tokcore.attention_block_scores(q, k, stat="max"))


class Attention(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, bits: Tensor) -> Tensor:
        return tokcore.block_sparse_attention(q, k, v, BlockMask(bits, shape=(q.size(2), k.size(2))))


def test_export_with_dynamic_shapes() -> None:
    auto = torch.export.Dim.AUTO
    shapes = {"q": {0: auto, 2: auto}, "k": {0: auto, 2: auto}, "v": {0: auto, 2: auto}, "bits": {2: auto, 3: auto}}
    inputs = [(2, 70, 5000), (3, 200, 3000)]

    def tensors(batch: int, m: int, n: int) -> tuple[Tensor, ...]:
        sizes = ((batch, H, m, D), (batch, HKV, n, D), (batch, HKV, n, D))
        return (*(torch.randn(*size) for size in sizes), BlockMask.full((m, n)).bits)

    program = torch.export.export(Attention(), tensors(*inputs[0]), dynamic_shapes=shapes)
    assert any("block_sparse_attention_forward" in str(node.target) for node in program.graph.nodes)
    for sizes in inputs:
        given = tensors(*sizes)
        assert torch.equal(program.module()(*given), Attention()(*given))


def zeros(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensor:
    return torch.zeros(*shape, dtype=dtype, device=device)


BLOCK_MASK = BlockMask.full((M, N))
WRAPPER: list[tuple[str, dict[str, Any], type[Exception], str, str, str]] = [
    ("both", {"q": [1.0]}, TypeError, "q", "a Tensor", "list"),
    (
        "both",
        {"q": zeros(B, H, M, D, dtype=torch.float64)},
        TypeError,
        "q",
        "dtype float32 or bfloat16 or float16",
        "float64",
    ),
    ("both", {"k": zeros(B, HKV, N, D, dtype=torch.bfloat16)}, TypeError, "k", "dtype float32 of q", "bfloat16"),
    ("both", {"k": zeros(B, HKV, N, D, device="meta")}, ValueError, "k", "device cpu of q", "meta"),
    ("both", {"q": zeros(H, M, D)}, ValueError, "q", "4 dimensions", "3"),
    ("both", {"k": zeros(B, HKV, N, 41)}, ValueError, "k", "shape [1, Hkv, N, 40] (B and D of q)", "[1, 1, 130, 41]"),
    ("both", {"k": zeros(B, 3, N, D)}, ValueError, "k", "a number of heads that divides 2 (H of q)", "3"),
    ("both", {"scale": 0.0}, ValueError, "scale", "a finite value > 0 or None", "0.0"),
    ("both", {"scale": "1"}, TypeError, "scale", "a number or None", "str"),
    ("both", {"causal": 1}, TypeError, "causal", "a bool", "int"),
    (
        "attention",
        {"v": zeros(B, HKV, 129, D)},
        ValueError,
        "v",
        "shape [1, 1, 130, 40] (shape of k)",
        "[1, 1, 129, 40]",
    ),
    ("attention", {"block_mask": zeros(2, 3)}, TypeError, "block_mask", "a tokcore.BlockMask", "Tensor"),
    (
        "attention",
        {"block_mask": BlockMask.full((M, 131))},
        ValueError,
        "block_mask",
        "shape (70, 130) (M of q, N of k)",
        "(70, 131)",
    ),
    ("attention", {"block_mask": mask(3)}, ValueError, "block_mask", "1 or 2 heads", "3"),
    (
        "attention",
        {"block_mask": BlockMask(zeros(2, 1, 2, 1, dtype=torch.int32), shape=(M, N))},
        ValueError,
        "block_mask",
        "1 or 1 batch entries",
        "2",
    ),
    (
        "attention",
        {"block_mask": BlockMask(zeros(1, 1, 2, 1, dtype=torch.int32, device="meta"), shape=(M, N))},
        ValueError,
        "block_mask",
        "device cpu of q",
        "meta",
    ),
    (
        "scores",
        {"block": (32, 64)},
        ValueError,
        "block",
        "(64, 64) or (128, 64) or (64, 128) or (128, 128)",
        "(32, 64)",
    ),
    ("scores", {"stat": "mean"}, ValueError, "stat", "'sum' or 'max' or 'count_above' or 'incoherence'", "'mean'"),
    ("scores", {"threshold": 1.0}, ValueError, "threshold", "a value in (0, 1)", "1.0"),
    ("scores", {"threshold": 0.0}, ValueError, "threshold", "a finite value > 0", "0.0"),
]
NAMES = {"attention": "block_sparse_attention", "scores": "attention_block_scores"}
WRAPPERS = [
    (NAMES[kind], change, error, f"argument '{argument}': expected {expected}, got {got}")
    for which, change, error, argument, expected, got in WRAPPER
    for kind in (NAMES if which == "both" else (which,))
]


@pytest.mark.parametrize(("name", "change", "error", "words"), WRAPPERS, ids=[f"{n}-{w}" for n, _, _, w in WRAPPERS])
def test_wrapper(name: str, change: dict[str, Any], error: type[Exception], words: str) -> None:
    q, k, v = heads()
    given: dict[str, Any] = {"q": q, "k": k}
    if name == "block_sparse_attention":
        given |= {"v": v, "block_mask": BLOCK_MASK}
    with pytest.raises(error) as raised:
        getattr(tokcore, name)(**{**given, **change})
    assert type(raised.value) is error
    assert str(raised.value) == f"tokcore.{name}: {words}"


@pytest.mark.parametrize("head_dim", [31, 257, 1])
def test_head_sizes_out_of_range(head_dim: int) -> None:
    q = zeros(1, 1, 4, head_dim)
    text = f"argument 'q': expected a last dimension in [32, 256], got {head_dim}"
    with pytest.raises(ValueError, match=re.escape(text)):
        tokcore.block_sparse_attention(q, q, q, BlockMask.full((4, 4)))
    with pytest.raises(ValueError, match=re.escape(text)):
        tokcore.attention_block_scores(q, q)


def test_shapes_alone() -> None:
    q, k, v = (x.to("meta") for x in heads())
    out, lse = tokcore.block_sparse_attention(q, k, v, BLOCK_MASK.to("meta"), return_lse=True)
    assert out.shape == q.shape
    assert lse.shape == (B, H, M)


def operator_arguments(name: str) -> dict[str, Any]:
    q, k, v = heads()
    scores: dict[str, Any] = {"q": q, "k": k, "block_m": 64, "block_n": 64, "scale": 0.2}
    if name == "attention_block_scores":
        return scores
    given = {**scores, "v": v, "mask_bits": BLOCK_MASK.bits}
    if name == "block_sparse_attention_backward":
        given |= {"grad_out": zeros(B, H, M, D), "out": zeros(B, H, M, D), "lse": zeros(B, H, M)}
    return given


FORWARD, BACKWARD, SCORES = (
    "block_sparse_attention_forward",
    "block_sparse_attention_backward",
    "attention_block_scores",
)
EVERY: list[tuple[dict[str, Any], str, str, str]] = [
    ({"q": zeros(B, H, M, D, dtype=torch.float64)}, "q", "dtype float32 or bfloat16 or float16", "float64"),
    ({"k": zeros(B, HKV, N, D, dtype=torch.float16)}, "k", "dtype float32 of q", "float16"),
    ({"k": zeros(HKV, N, D)}, "k", "4 dimensions", "3"),
    ({"k": zeros(B, HKV, N, 41)}, "k", "shape [1, Hkv, N, 40] (B and D of q)", "[1, 1, 130, 41]"),
    ({"k": zeros(2, HKV, N, D)}, "k", "shape [1, Hkv, N, 40] (B and D of q)", "[2, 1, 130, 40]"),
    ({"block_m": 32}, "block_m", "64 or 128", "32"),
    ({"block_n": 256}, "block_n", "64 or 128", "256"),
    ({"scale": -1.0}, "scale", "a finite value > 0", "-1"),
    ({"scale": float("nan")}, "scale", "a finite value > 0", "nan"),
    ({"q": zeros(B, H, M, 2 * D)[..., ::2]}, "q", "stride 1 in the last dimension", "2"),
    ({"k": zeros(B, HKV, D, N).transpose(2, 3)}, "k", "stride 1 in the last dimension", "130"),
]
MASKED: list[tuple[dict[str, Any], str, str, str]] = [
    ({"v": zeros(B, HKV, N, D, dtype=torch.float16)}, "v", "dtype float32 of q", "float16"),
    ({"v": zeros(B, 2, N, D)}, "v", "shape [1, 1, 130, 40] (shape of k)", "[1, 2, 130, 40]"),
    ({"mask_bits": zeros(1, 1, 2, 1)}, "mask_bits", "dtype int32", "float32"),
    ({"mask_bits": zeros(1, 2, 1, dtype=torch.int32)}, "mask_bits", "4 dimensions", "3"),
    (
        {"mask_bits": zeros(1, 1, 2, 2, dtype=torch.int32)},
        "mask_bits",
        "shape [1 or 1, 1 or 2, 2, 1] (B and H of q, blocks, words)",
        "[1, 1, 2, 2]",
    ),
    (
        {"block_m": 128},
        "mask_bits",
        "shape [1 or 1, 1 or 2, 1, 1] (B and H of q, blocks, words)",
        "[1, 1, 2, 1]",
    ),
]
OPERATOR_ROWS: list[tuple[str, dict[str, Any], str, str, str]] = [
    *((name, *row) for name in (FORWARD, BACKWARD, SCORES) for row in EVERY),
    *((name, *row) for name in (FORWARD, BACKWARD) for row in MASKED),
    (SCORES, {"stat": "mean"}, "stat", "'sum' or 'max' or 'count_above' or 'incoherence'", "'mean'"),
    (SCORES, {"threshold": 2.0}, "threshold", "a value in (0, 1)", "2"),
    (BACKWARD, {"out": zeros(B, H, M, D, dtype=torch.float16)}, "out", "dtype float32 of q", "float16"),
    (BACKWARD, {"lse": zeros(B, H, M, dtype=torch.float64)}, "lse", "dtype float32", "float64"),
    (BACKWARD, {"grad_out": zeros(B, H, M, 1)}, "grad_out", "shape [1, 2, 70, 40] (shape of q)", "[1, 2, 70, 1]"),
    (BACKWARD, {"lse": zeros(B, H, M, 1)}, "lse", "shape [1, 2, 70] ([B, H, M] of q)", "[1, 2, 70, 1]"),
    (BACKWARD, {"grad_lse": zeros(B, H, 1)}, "grad_lse", "shape [1, 2, 70] ([B, H, M] of q)", "[1, 2, 1]"),
    (BACKWARD, {"out": zeros(B, H, D, M).transpose(2, 3)}, "out", "stride 1 in the last dimension", "70"),
]


@pytest.mark.parametrize(
    ("name", "change", "argument", "expected", "got"),
    OPERATOR_ROWS,
    ids=[f"{name}-{argument}-{got}" for name, _, argument, _, got in OPERATOR_ROWS],
)
def test_kernel_and_fake_say_the_same(
    name: str, change: dict[str, Any], argument: str, expected: str, got: str
) -> None:
    op = getattr(torch.ops.tokcore, name)
    arguments = {**operator_arguments(name), **change}
    text = f"tokcore.{name}: argument '{argument}': expected {expected}, got {got}"
    with pytest.raises(RuntimeError) as from_kernel:
        op(**arguments)
    mode = FakeTensorMode()
    fakes = {key: mode.from_tensor(value) if isinstance(value, Tensor) else value for key, value in arguments.items()}
    with pytest.raises(RuntimeError) as from_fake, mode:
        op(**fakes)
    assert same_numbers(str(from_kernel.value).splitlines()[0]) == text
    assert same_numbers(str(from_fake.value)) == text


def same_numbers(text: str) -> str:
    """Whole floats without their fraction: "got 2.0" and "got 2" are one text."""
    return re.sub(r"(?<=got )(-?\d+)\.0$", r"\1", text)
