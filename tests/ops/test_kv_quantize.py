"""What quantization promises beyond the bits of the case table."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import DTYPES, bits, threads

import tokcore
from tokcore.reference import kv_cache as layout
from tokcore.reference import kv_quantize as meaning


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    bits_=st.sampled_from([8, 4, 2]),
    axis=st.sampled_from(["token", "channel"]),
    symmetric=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    shift=st.floats(-100, 100),
    size=st.floats(1e-6, 1e6),
    seed=st.integers(0, 99),
)
def test_error_is_at_most_half_a_step(
    bits_: int, axis: str, symmetric: bool, dtype: torch.dtype, shift: float, size: float, seed: int
) -> None:
    limit = 60000.0 if dtype == torch.float16 else float("inf")
    x = (random(3, 32, 48, seed=seed) * size + shift).clamp(-limit, limit).to(dtype)
    q = tokcore.kv_quantize(x, bits_, axis, 16, symmetric)
    step = q.scale.float()
    step = step.repeat_interleave(16, -1 if axis == "token" else -2)
    error = (q.dequantize(torch.float32).double() - x.double()).abs()
    rounding = 4 * 2.0**-23 * (x.double().abs() + step.double() * 2**bits_)
    assert bool((error <= step.double() / 2 + rounding).all())


@pytest.mark.parametrize("bits_", [8, 4, 2])
@pytest.mark.parametrize("symmetric", [False, True])
def test_constant_groups_come_back(bits_: int, symmetric: bool) -> None:
    for value in (0.0, -3.0, 0.40625):  # exact in bfloat16
        q = tokcore.kv_quantize(torch.full((4, 64), value), bits_, symmetric=symmetric)
        back = q.dequantize()
        assert back.isfinite().all()
        torch.testing.assert_close(back, torch.full_like(back, value), rtol=2**-7 if symmetric else 0, atol=0)
        assert q.packed.view(-1)[0] == q.packed.view(-1)[-1]


@pytest.mark.parametrize("axis", ["token", "channel"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("symmetric", [False, True])
def test_what_is_not_finite_poisons_its_group_alone(axis: str, bad: float, symmetric: bool) -> None:
    x = random(2, 32, 64)
    x[1, 5, 20] = bad
    q = tokcore.kv_quantize(x, 8, axis, 16, symmetric)
    expected = torch.zeros_like(x, dtype=torch.bool)
    if axis == "token":
        expected[1, 5, 16:32] = True
    else:
        expected[1, :16, 20] = True
    assert torch.equal(q.dequantize().isnan(), expected)


def test_a_range_that_overflows_is_nan_and_not_wrong() -> None:
    x = torch.tensor([[3.0e38, -3.0e38] * 16])
    assert tokcore.kv_quantize(x).dequantize().isnan().all()


@pytest.mark.parametrize("D", [32, 64, 128, 256])
def test_rotation_is_orthonormal_and_undone(D: int) -> None:
    x = random(5, D)
    torch.testing.assert_close(meaning.rotate_back(meaning.rotate(x)), x, rtol=0, atol=1e-5)
    torch.testing.assert_close(meaning.rotate(x).norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=0)


def test_rotation_spreads_an_outlier_channel() -> None:
    x = random(64, 128)
    x[:, 7] *= 100.0
    rest = torch.arange(128) != 7

    def error(**options: bool) -> float:
        return float((tokcore.kv_quantize(x, 4, **options).dequantize() - x)[:, rest].square().mean())

    per_tensor = (x / (x.abs().max() / 7)).round() * (x.abs().max() / 7)
    collapsed = float((per_tensor - x)[:, rest].square().mean())
    assert error(rotate=True) < 0.25 * error()
    assert collapsed > 0.9  # one scale for all: nothing but the outlier is left


@pytest.mark.parametrize("bits_", [8, 4, 2])
@pytest.mark.parametrize("page_size", [16, 32, 64, 128])
@pytest.mark.parametrize("D", [32, 96, 128, 256])
def test_page_layouts_hold_every_code(bits_: int, page_size: int, D: int) -> None:
    codes = torch.randint(2**bits_, (2, page_size, D), dtype=torch.uint8, generator=torch.Generator().manual_seed(D))
    for pack, unpack in (
        (layout.pack_key_pages, layout.unpack_key_pages),
        (layout.pack_value_pages, layout.unpack_value_pages),
    ):
        packed = pack(codes, bits_)
        assert packed.shape == (2, page_size, D * bits_ // 8)
        assert torch.equal(unpack(packed, bits_), codes)
    assert torch.equal(meaning.unpack_rows(meaning.pack_rows(codes, bits_), bits_), codes)


def test_a_channel_scale_per_head() -> None:
    x, scale = random(2, 3, 8, 64), 0.5 + random(3, 64, seed=1).abs()
    q = tokcore.kv_quantize(x, channel_scale=scale)
    by_hand = tokcore.kv_quantize(x / scale.unsqueeze(1))
    assert torch.equal(q.packed, by_hand.packed)
    torch.testing.assert_close(q.dequantize(), by_hand.dequantize() * scale.unsqueeze(1), rtol=0, atol=0)


@pytest.mark.parametrize("axis", ["token", "channel"])
def test_layouts_threads_and_empty_tensors(axis: str) -> None:
    x = random(3, 64, 64)
    expected = tokcore.kv_quantize(x, 4, axis, 32)
    wide = torch.full((3, 64, 70), float("nan"))
    wide[..., 3:67] = x
    for other in (wide[..., 3:67], x.transpose(0, 1).contiguous().transpose(0, 1), x.mT.contiguous().mT):
        for count in (1, 2, 3):
            with threads(count):
                got = tokcore.kv_quantize(other, 4, axis, 32)
            assert torch.equal(got.packed, expected.packed)
            assert torch.equal(bits(got.scale), bits(expected.scale))
    empty = tokcore.kv_quantize(x[:0], 4, axis, 32)
    assert empty.dequantize().shape == (0, 64, 64)
    assert tokcore.kv_quantize(x[:, :0], 4).shape == (3, 0, 64)


def test_past_two_to_the_31_elements() -> None:
    rows = 2**31 // 64 + 5
    x = torch.zeros(1, 64, dtype=torch.bfloat16).expand(rows, 64)
    storage = torch.empty(rows + 1, 64, dtype=torch.bfloat16)  # mapped, hardly written
    storage[-1] = torch.arange(64).bfloat16()
    q = tokcore.kv_quantize(storage[-2:])
    assert x.numel() > 2**31
    torch.testing.assert_close(q.dequantize()[-1].float(), torch.arange(64.0), rtol=0, atol=0.26)


def test_sizes_of_what_is_returned() -> None:
    q = tokcore.kv_quantize(random(2, 4, 32, 128).bfloat16(), 2, "channel", 16)
    assert q.packed.shape == (2, 4, 32, 32)
    assert q.scale.shape == (2, 4, 2, 128)
    assert q.shape == (2, 4, 32, 128)
    assert q.nbytes == 2 * 4 * 32 * 32 + 2 * (2 * 2 * 4 * 2 * 128)
    assert q.dequantize().dtype == torch.bfloat16
