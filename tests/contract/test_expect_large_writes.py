from __future__ import annotations

import pytest
import torch


def test_values_stay_as_they_are() -> None:
    x = torch.arange(3 << 20, dtype=torch.int32)  # 12 MB: some huge pages, and ends that fill none
    torch.ops.tokcore.expect_large_writes(x)
    assert torch.equal(x, torch.arange(3 << 20, dtype=torch.int32))


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_memory_without_a_whole_huge_page_is_left_alone(size: int) -> None:
    x = torch.full((size,), 7, dtype=torch.uint8)
    torch.ops.tokcore.expect_large_writes(x)
    assert bool((x == 7).all())


def test_a_strided_tensor_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"tokcore.expect_large_writes: argument 'tensor': expected a contiguous"):
        torch.ops.tokcore.expect_large_writes(torch.zeros(4, 4)[:, :2])
