"""mma.sync, ldmatrix and cp.async as the PTX manual describes them."""

from __future__ import annotations

import re

import pytest
import torch
from simt_support import POLICIES, Policy, guarded, guarded_empty, simt

KINDS = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "TF32": torch.float32,
    "S8": torch.int8,
    "U8": torch.uint8,
    "E4M3": torch.float8_e4m3fn,
    "E5M2": torch.float8_e5m2,
}


def operands(op: str) -> tuple[torch.dtype, torch.dtype, int]:
    """Types of a and b and the size of K, from the instruction's name."""
    found = re.fullmatch(r"SM\d+_16x8x(\d+)_[FS]32(TF32|B?F16|[SU]8|E.M.)(TF32|B?F16|[SU]8|E.M.)[FS]32_TN", op)
    assert found
    return KINDS[found[2]], KINDS[found[3]], int(found[1])


def draw(generator: torch.Generator, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    if dtype in (torch.int8, torch.uint8):
        bounds = torch.iinfo(dtype)
        return torch.randint(bounds.min, bounds.max + 1, shape, generator=generator, dtype=dtype)
    return torch.randn(shape, generator=generator).to(dtype)


def seen(operand: torch.Tensor) -> torch.Tensor:
    """The operand in float64 as a tensor core sees it: of an fp32 number the upper 19 bits."""
    if operand.dtype == torch.float32:
        operand = (operand.view(torch.int32) & ~0x1FFF).view(torch.float32)
    return operand.double()


def multiply(op: str, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    a, b, c = guarded(a.view(torch.uint8), "a"), guarded(b.view(torch.uint8), "b"), guarded(c, "c")
    d = guarded_empty(c.shape, c.dtype, "d")
    simt.mma(op, a.data_ptr(), b.data_ptr(), c.data_ptr(), d.data_ptr())
    return d


@pytest.mark.parametrize("op", simt.mma_ops())
def test_mma(op: str) -> None:
    a_type, b_type, depth = operands(op)
    generator = torch.Generator().manual_seed(0)
    a, b = draw(generator, a_type, 16, depth), draw(generator, b_type, 8, depth)
    whole = a_type in (torch.int8, torch.uint8)
    c = torch.randint(-(2**20), 2**20, (16, 8), generator=generator, dtype=torch.int32) if whole else draw(
        generator, torch.float32, 16, 8
    )  # fmt: skip
    expected = seen(a) @ seen(b).T + c.double()
    magnitude = seen(a).abs() @ seen(b).abs().T + c.double().abs()
    d = multiply(op, a, b, c)
    if whole:
        assert d.double().equal(expected)
    else:
        assert ((d - expected).abs() <= 2.0**-24 * (depth + 1) * magnitude).all()


@pytest.mark.parametrize("op", [op for op in simt.mma_ops() if "S32" in op])
def test_integer_sums_wrap(op: str) -> None:
    a_type, b_type, depth = operands(op)
    a, b = torch.full((16, depth), 100, dtype=a_type), torch.full((8, depth), 100, dtype=b_type)
    d = multiply(op, a, b, torch.full((16, 8), 2**31 - 1, dtype=torch.int32))
    assert d.eq(2**31 - 1 + depth * 10000 - 2**32).all()


@pytest.mark.parametrize("op", [op for op in simt.mma_ops() if "F32" in op])
def test_mma_keeps_infinities_nans_and_subnormal_numbers(op: str) -> None:
    a_type, b_type, depth = operands(op)
    a, b, c = torch.zeros(16, depth), torch.zeros(8, depth), torch.zeros(16, 8)
    b[0, 0] = 1.0
    tiny = torch.finfo(a_type).tiny if a_type == torch.float32 else torch.finfo(a_type).smallest_normal / 2
    values = torch.tensor([torch.nan, tiny, -tiny, torch.finfo(a_type).max, 1.5, -0.0])
    if a_type != torch.float8_e4m3fn:  # which has no infinity
        values = torch.cat([values, torch.tensor([torch.inf, -torch.inf])])
    a[: len(values), 0] = values
    d = multiply(op, a.to(a_type), b.to(b_type), c)
    expected = seen(a.to(a_type))[:, 0].float()
    assert torch.equal(d[:, 0].nan_to_num(7.0), expected.nan_to_num(7.0))
    assert d[0].isnan().all()
    assert torch.equal(d[:, 0].isinf(), expected.isinf())


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_every_value_of_a_narrow_type(kind: torch.dtype) -> None:
    op = {
        torch.float8_e4m3fn: "SM89_16x8x32_F32E4M3E4M3F32_TN",
        torch.float8_e5m2: "SM89_16x8x32_F32E5M2E5M2F32_TN",
        torch.float16: "SM80_16x8x16_F32F16F16F32_TN",
    }[kind]
    _, _, depth = operands(op)
    bits = torch.arange(2 ** (8 * kind.itemsize)).to(torch.uint8 if kind.itemsize == 1 else torch.uint16)
    b = torch.zeros(8, depth)
    b[:, 0] = 1.0
    for values in bits.view(kind).view(-1, 16):
        a = torch.zeros(16, depth, dtype=kind)
        a[:, 0] = values
        d = multiply(op, a, b.to(kind), torch.zeros(16, 8))
        assert torch.equal(d[:, 0].nan_to_num(7.0), values.float().nan_to_num(7.0))


def test_mma_in_double_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((8, 4), (8, 4), (8, 8)))
    a, b, c = guarded(a, "a"), guarded(b, "b"), guarded(c, "c")
    d = guarded_empty((8, 8), torch.float64, "d")
    simt.mma("SM80_8x8x4_F64F64F64F64_TN", a.data_ptr(), b.data_ptr(), c.data_ptr(), d.data_ptr())
    assert torch.allclose(d, a @ b.T + c, rtol=0, atol=1e-14)


@pytest.mark.parametrize("num", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(num: int, transposed: bool) -> None:
    rows = guarded(torch.arange(32 * 8, dtype=torch.int16).view(32, 8), "rows")
    out = guarded_empty((num, 32), torch.int32, "out")
    simt.ldmatrix(num, transposed, rows.data_ptr(), out.data_ptr(), 0)
    matrices = rows.view(4, 8, 8)[:num]
    matrices = matrices.mT if transposed else matrices
    assert out.view(torch.int16).view(num, 8, 8).equal(matrices.contiguous())


def test_ldmatrix_checks_its_addresses() -> None:
    rows = guarded(torch.zeros(32, 8, dtype=torch.int16), "rows")
    out = guarded_empty((4, 32), torch.int32, "out")
    with pytest.raises(simt.Error, match=r"ldmatrix\.x2: misaligned, offset 8 of shared memory is no multiple of 16"):
        simt.ldmatrix(2, False, rows.data_ptr(), out.data_ptr(), 8)
    with pytest.raises(simt.Error, match=r"ldmatrix\.x4\.trans: 16 bytes .* not inside the block's 512 bytes"):
        simt.ldmatrix(4, True, rows.data_ptr(), out.data_ptr(), 16)
    simt.ldmatrix(2, False, rows.data_ptr(), out.data_ptr(), 256)  # lanes from 16 on give no address


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("num_bytes", [4, 8, 16])
@pytest.mark.parametrize("ending", ["wait_all", "wait_groups"])
def test_cp_async(policy: Policy, num_bytes: int, ending: str) -> None:
    policy.use()
    for valid in (64, 40, 3, 0):
        values = torch.randint(-128, 128, (max(valid, 1), num_bytes), dtype=torch.int8)
        source = guarded(values, "source")  # no more than what is valid: nothing else may be read
        out = guarded_empty((64, num_bytes), torch.int8, "out")
        simt.cp_async(ending, num_bytes, source.data_ptr(), out.data_ptr(), valid)
        assert out[:valid].equal(values[:valid])
        assert out[valid:].eq(0).all()


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_cp_async_that_nobody_waits_for(policy: Policy) -> None:
    policy.use()
    source = guarded(torch.zeros(64, dtype=torch.int32), "source")
    out = guarded_empty((64,), torch.int32, "out")
    run = ("no_wait", "no_commit", "nothing_to_wait_for")
    for ending, text in zip(run, ("2 cp.async that it did not wait for", "2 uncommitted cp.async", ""), strict=True):
        if text:
            with pytest.raises(simt.Error, match=f"thread .* exited with {text}"):
                simt.cp_async(ending, 4, source.data_ptr(), out.data_ptr(), 64)
        else:
            simt.cp_async(ending, 4, source.data_ptr(), out.data_ptr(), 64)


def test_late_copies_are_not_there_before_the_wait() -> None:
    source = guarded(torch.arange(64, dtype=torch.int32), "source")
    for asynchrony, expected in (("late", torch.full((64,), -1)), ("early", torch.arange(64))):
        Policy(asynchrony=asynchrony).use()
        out = guarded_empty((64,), torch.int32, "out")
        with pytest.raises(simt.Error, match="did not wait"):
            simt.cp_async("no_wait", 4, source.data_ptr(), out.data_ptr(), 64)
        first = 1  # the error of the first thread ends the others; its own two elements are written
        assert out[0] == expected[0]
        assert out[32] == expected[32]
        assert out[first:32].eq(-1).all()


def test_cp_async_checks_its_addresses() -> None:
    source = guarded(torch.zeros(66, dtype=torch.int64).view(torch.int32), "source")
    out = guarded_empty((128,), torch.int32, "out")
    with pytest.raises(
        simt.Error, match=r"cp\.async: misaligned global address .* no multiple of 8 .*offset 4 of buffer source"
    ):
        simt.cp_async("wait_all", 8, source.data_ptr() + 4, out.data_ptr(), 64)
    last = source.data_ptr() + source.nbytes
    with pytest.raises(simt.Error, match="invalid read, 0 bytes past the end of buffer source"):
        simt.cp_async("wait_all", 4, last - 63 * 4, out.data_ptr(), 64)
