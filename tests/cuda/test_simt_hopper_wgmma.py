"""Every form of wgmma that is emulated, laid out by CuTe, against fp64; and the descriptor of a shifted pattern."""

from __future__ import annotations

import re

import pytest
import torch
from simt_support import Policy, guarded, guarded_empty, simt

ROWS, BYTES_OF_K = 128, 128
TYPES = {
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "f32": torch.float32,
    "tf32": torch.float32,
    "s8": torch.int8,
    "u8": torch.uint8,
    "s32": torch.int32,
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
}


def operand(kind: str, rows: int, seed: int) -> torch.Tensor:
    dtype = TYPES[kind]
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, BYTES_OF_K // dtype.itemsize)
    if kind in ("s8", "u8"):
        low, high = (-128, 128) if kind == "s8" else (0, 256)
        return torch.randint(low, high, shape, generator=generator, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def value(tensor: torch.Tensor, kind: str) -> torch.Tensor:
    if kind == "tf32":  # the hardware ignores what a tf32 cannot hold
        tensor = (tensor.view(torch.int32) & ~0x1FFF).view(torch.float32)
    return tensor.double()


@pytest.mark.parametrize("policy", [Policy(), Policy("random", "random", seed=3)], ids=str)
@pytest.mark.parametrize("name", simt.hopper_wgmma)
def test_product_is_right(name: str, policy: Policy) -> None:
    policy.use()
    match = re.fullmatch(r"(negative_)?([a-z0-9]+)_([a-z0-9]+)_([a-z0-9]+)_n(\d+)_.*", name)
    assert match
    sign, (d, kind_a, kind_b), columns = -1 if match[1] else 1, match.group(2, 3, 4), int(match[5])
    a, b = operand(kind_a, ROWS, 1), operand(kind_b, columns, 2)
    exact = sign * value(a, kind_a) @ value(b, kind_b).T
    size = value(a, kind_a).abs() @ value(b, kind_b).abs().T
    a, b = guarded(a, "a"), guarded(b, "b")
    c = guarded_empty((ROWS, columns), TYPES[d], "c")
    simt.hopper_wgmma[name](a.data_ptr(), b.data_ptr(), c.data_ptr())
    if d == "s32":
        assert torch.equal(c.double(), exact)
    elif d == "f32":
        assert ((c - exact).abs() <= 2.0**-21 * size).all()
    else:  # fp16 sums are rounded after each of the four instructions along k
        assert ((c - exact).abs() <= 4 * 2.0**-11 * size).all()


@pytest.mark.parametrize(("layout", "period"), [(1, 8), (2, 4), (3, 2)])
@pytest.mark.parametrize("k_major", [True, False])
def test_base_offset_shifts_the_pattern_of_the_swizzle(layout: int, period: int, k_major: bool) -> None:
    def offsets(shift: int, base_offset: int) -> list[int]:
        return [
            simt.chunk_offset(
                start=4096 + 128 * shift,
                leading_offset=8192,
                stride_offset=1024,
                base_offset=base_offset,
                layout=layout,
                k_major=k_major,
                row=row,
                chunk=chunk,
            )
            for row in range(16)
            for chunk in range(2)
        ]

    aligned = offsets(0, 0)
    for shift in range(1, period):
        assert offsets(shift, shift) == [offset + 128 * shift for offset in aligned]
        assert offsets(shift, 0) != offsets(shift, shift)
