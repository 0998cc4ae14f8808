"""The PARO ops keep the contracts of every op: registration, compile, export, one error text everywhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import tokcore
from tokcore import BlockMask

B, H, HKV, N, D = 1, 2, 1, 70, 40
GRID, TEXT = [2, 3, 11], [1, 3]


def heads(length: int = N) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, H, length, D), (B, HKV, length, D), (B, HKV, length, D))
    q, k, v = (torch.randn(*shape, generator=generator) for shape in shapes)
    return q, k, v


def attention_arguments(qk: str = "int8", pv: str = "int8") -> dict[str, Any]:
    operands = tokcore.paro_prepare(*heads(), 4, GRID, text=TEXT, qk=qk, pv=pv)
    names = ("q_codes", "q_scale", "k_codes", "k_scale", "v_codes", "v_scale", "mean_score")
    given: dict[str, Any] = {name: getattr(operands, name) for name in names}
    given |= {"mask_bits": BlockMask.full((N, N)).bits, "permutation": [4], "grid": GRID, "text": TEXT}
    given |= {"block_m": 64, "block_n": 64, "head_dim": D, "scale": 0.2, "out_dtype": torch.float32}
    return {**given, "qk": qk, "pv": pv}


def prepare_arguments() -> dict[str, Any]:
    q, k, v = heads()
    return {"q": q, "k": k, "v": v, "permutation": [2], "grid": GRID, "text": TEXT}


@pytest.mark.parametrize(("qk", "pv"), [("int8", "int8"), ("int4", "fp8"), ("bf16", "int4"), ("int8", "bf16")])
def test_opcheck(qk: str, pv: str) -> None:
    rope = {"rope_cos": torch.rand(66, 20), "rope_sin": torch.rand(66, 20)} if qk == "int8" else {}
    options = {"qk": qk, "pv": pv, "smooth_k": pv != "bf16"}
    torch.library.opcheck(torch.ops.tokcore.paro_prepare, (), {**prepare_arguments(), **rope, **options})
    torch.library.opcheck(torch.ops.tokcore.paro_attention, (), attention_arguments(qk, pv))


def test_compiles_and_exports() -> None:
    class Attention(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor, bits: Tensor) -> Tensor:
            frames = q.size(2) // 12
            mask = BlockMask(bits, shape=(q.size(2), q.size(2)))
            return tokcore.paro_attention(q, k, v, mask, (5,), (frames, 3, 4))

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(Attention(), fullgraph=True, dynamic=True, backend="aot_eager")
    for frames in (5, 9, 20, 31):
        q, k, v = heads(12 * frames)
        bits = BlockMask.full((12 * frames, 12 * frames)).bits
        assert torch.equal(compiled(q, k, v, bits), Attention()(q, k, v, bits))
    assert 1 <= int(torch._dynamo.utils.counters["stats"]["unique_graphs"]) <= 2
    torch._dynamo.reset()
    arguments = (*heads(), attention_arguments()["mask_bits"])
    program = torch.export.export(_Fixed(), arguments)
    assert torch.equal(program.module()(*arguments), _Fixed()(*arguments))


class _Fixed(torch.nn.Module):
    def forward(self, q: Tensor, k: Tensor, v: Tensor, bits: Tensor) -> Tensor:
        return tokcore.paro_attention(q, k, v, BlockMask(bits, shape=(N, N)), 3, (2, 3, 11), text=(1, 3))


def test_shapes_alone() -> None:
    q, k, v = (x.to("meta") for x in heads())
    mask = BlockMask.full((N, N)).to("meta")
    out, lse = tokcore.paro_attention(q, k, v, mask, 1, GRID, text=TEXT, return_lse=True)
    assert out.shape == q.shape
    assert lse.shape == (B, H, N)


def zeros(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(*shape, dtype=dtype)


Row = tuple[str, dict[str, Any], str, str, str]
PREPARE: list[Row] = [
    ("paro_prepare", change, argument, expected, got)
    for change, argument, expected, got in (
        ({"q": zeros(B, H, N, D).double()}, "q", "dtype float32 or bfloat16 or float16", "float64"),
        ({"k": zeros(B, HKV, N, D).half()}, "k", "dtype float32 of q", "float16"),
        ({"rope_cos": zeros(N, D).double()}, "rope_cos", "dtype float32", "float64"),
        ({"v": zeros(HKV, N, D)}, "v", "4 dimensions", "3"),
        ({"rope_cos": zeros(1, N, D)}, "rope_cos", "2 dimensions", "3"),
        ({"k": zeros(B, 3, N, D)}, "k", "a number of heads that divides 2 (H of q)", "3"),
        ({"k": zeros(B, HKV, 71, D)}, "k", "70 tokens (N of q)", "71"),
        ({"v": zeros(B, HKV, N, 41)}, "v", "shape [1, 1, 70, 40] (shape of k)", "[1, 1, 70, 41]"),
        ({"permutation": [1, 2]}, "permutation", "1 codes (Hkv of k)", "2 codes"),
        ({"permutation": [6]}, "permutation", "codes in [0, 5]", "6"),
        ({"grid": [66]}, "grid", "3 sizes", "1"),
        ({"text": [4]}, "text", "2 counts", "1"),
        ({"grid": [0, 3, 11]}, "grid", "sizes >= 1", "0"),
        ({"text": [5, -1]}, "text", "counts >= 0", "-1"),
        ({"text": [1, 4]}, "grid", "F*H*W + text = 70 (N of q)", "71"),
        ({"rope_pairs": "both"}, "rope_pairs", "'interleaved' or 'half'", "'both'"),
        ({"rope_cos": zeros(N, D)}, "rope_sin", "a Tensor exactly if rope_cos is one", "None"),
        (
            {"rope_cos": zeros(N, 39), "rope_sin": zeros(N, 39)},
            "rope_cos",
            "shape [70 or 66, 40 or 20] (N or F*H*W, D or D/2, D even)",
            "[70, 39]",
        ),
        (
            {"rope_cos": zeros(N, D), "rope_sin": zeros(66, D)},
            "rope_sin",
            "shape [70, 40] (shape of rope_cos)",
            "[66, 40]",
        ),
        ({"qk": "fp8"}, "qk", "'int8' or 'int4' or 'bf16'", "'fp8'"),
        ({"pv": "int2"}, "pv", "'int8' or 'int4' or 'fp8' or 'bf16'", "'int2'"),
        ({"v": zeros(B, HKV, D, N).transpose(2, 3)}, "v", "stride 1 in the last dimension", "70"),
    )
]
ATTENTION: list[Row] = [
    ("paro_attention", change, argument, expected, got)
    for change, argument, expected, got in (
        ({"q_codes": zeros(B, H, 128, 64)}, "q_codes", "dtype int8", "float32"),
        ({"qk": "int4"}, "q_codes", "dtype uint8", "int8"),
        ({"v_scale": zeros(B, HKV, D).half()}, "v_scale", "dtype float32", "float16"),
        ({"out_dtype": torch.float64}, "out_dtype", "float32 or bfloat16 or float16", "float64"),
        ({"k_codes": zeros(HKV, 128, 64).char()}, "k_codes", "4 dimensions", "3"),
        ({"permutation": [4, 4]}, "permutation", "1 codes (Hkv of k)", "2 codes"),
        ({"head_dim": 300}, "head_dim", "a value in [32, 256]", "300"),
        ({"head_dim": 65}, "q_codes", "shape [1, 2, 128, 128] (codes of [B, H, N, D])", "[1, 2, 128, 64]"),
        ({"grid": [2, 3, 30]}, "q_codes", "shape [1, 2, 192, 64] (codes of [B, H, N, D])", "[1, 2, 128, 64]"),
        ({"k_scale": zeros(B, HKV, 3)}, "k_scale", "shape [1, 1, 2] (scales of k_codes)", "[1, 1, 3]"),
        ({"mean_score": zeros(1)}, "mean_score", "shape [0] ([B, H, N] or none)", "[1]"),
        ({"block_m": 32}, "block_m", "64 or 128", "32"),
        (
            {"block_n": 128, "block_m": 128},
            "mask_bits",
            "shape [1 or 1, 1 or 2, 1, 1] (B and H of q, blocks, words)",
            "[1, 1, 2, 1]",
        ),
        ({"scale": float("nan")}, "scale", "a finite value > 0", "nan"),
        (
            {"k_codes": zeros(B, HKV, 64, 128).char().transpose(2, 3)},
            "k_codes",
            "a contiguous tensor",
            "strides that are not",
        ),
    )
]


@pytest.mark.parametrize(
    ("name", "change", "argument", "expected", "got"),
    [*PREPARE, *ATTENTION],
    ids=[f"{name}-{argument}-{got}" for name, _, argument, _, got in (*PREPARE, *ATTENTION)],
)
def test_kernel_and_fake_say_the_same(
    name: str, change: dict[str, Any], argument: str, expected: str, got: str
) -> None:
    op = getattr(torch.ops.tokcore, name)
    arguments = {**(prepare_arguments() if name == "paro_prepare" else attention_arguments()), **change}
    text = f"tokcore.{name}: argument '{argument}': expected {expected}, got {got}"
    with pytest.raises(RuntimeError) as from_kernel:
        op(**arguments)
    mode = FakeTensorMode()
    fakes = {key: mode.from_tensor(value) if isinstance(value, Tensor) else value for key, value in arguments.items()}
    with pytest.raises(RuntimeError) as from_fake, mode:
        op(**fakes)
    assert str(from_kernel.value).splitlines()[0] == text
    assert str(from_fake.value) == text
