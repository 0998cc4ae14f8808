"""TMA against indexing: tiles of one to five dimensions, swizzles, edges, stores, sums; the checks of tensor maps."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from simt_support import POLICIES, Policy, guarded, guarded_empty, simt

SIZES = [40, 9, 5, 4, 3]  # innermost first
# The box is two elements narrower than the edge it is laid over, whichever dimension.
BOXES = [[16], [16, 8], [16, 4, 3], [16, 4, 3, 2], [16, 4, 3, 2, 2]]


def tensor_of(rank: int, dtype: torch.dtype) -> torch.Tensor:
    sizes = SIZES[:rank][::-1]
    count = torch.Size(sizes).numel()
    return (torch.arange(count) % 251).to(dtype).view(sizes)


def strides_of(tensor: torch.Tensor) -> list[int]:
    return [stride * tensor.element_size() for stride in tensor.stride()[::-1][1:]]


def tile_of(tensor: torch.Tensor, box: list[int], corner: list[int], swizzle: int = 0) -> Any:
    name = str(tensor.dtype).removeprefix("torch.")
    return simt.Tile(
        element=name,
        base=tensor.data_ptr(),
        sizes=list(tensor.shape[::-1]),
        strides_bytes=strides_of(tensor),
        box=box,
        swizzle=swizzle,
        corner=corner,
    )


def cut(tensor: torch.Tensor, box: list[int], corner: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The tile with zeros outside of the tensor, and which of its elements are inside."""
    tile = torch.zeros(box[::-1], dtype=tensor.dtype)
    inside = torch.zeros(box[::-1], dtype=torch.bool)
    for place in itertools.product(*(range(extent) for extent in box[::-1])):
        at = tuple(first + i for first, i in zip(corner[::-1], place, strict=True))
        if all(0 <= i < size for i, size in zip(at, tensor.shape, strict=True)):
            tile[place] = tensor[at]
            inside[place] = True
    return tile, inside


def swizzle_bytes(rows: torch.Tensor, swizzle: int) -> torch.Tensor:
    """The bytes of a tile, row after row, as a swizzle of that span leaves them."""
    data = rows.contiguous().view(torch.uint8).flatten()
    if swizzle == 0:
        return data
    chunks = data.view(-1, 16)
    index = torch.arange(len(chunks))
    line, chunk = index // 8, index % 8  # of 128 bytes, of 16
    out = torch.empty_like(chunks)
    out[line * 8 + (chunk ^ (line % (swizzle // 16)))] = chunks
    return out.flatten()


@pytest.mark.parametrize("rank", range(1, 6))
@pytest.mark.parametrize("edge", ["inside", "below", "above"])
@pytest.mark.parametrize("policy", [Policy(), Policy("reversed", "early"), Policy("random", "random")], ids=str)
def test_load(rank: int, edge: str, policy: Policy) -> None:
    policy.use()
    tensor = guarded(tensor_of(rank, torch.bfloat16), "tensor")
    box = BOXES[rank - 1]
    for dimension in range(rank):
        corner = [1] * rank
        if edge != "inside":
            corner[dimension] = -2 if edge == "below" else SIZES[dimension] - box[dimension] + 2
        out = guarded_empty(box[::-1], torch.bfloat16, "out")
        tile_of(tensor, box, corner).load(out.data_ptr())
        assert torch.equal(out, cut(tensor, box, corner)[0])


@pytest.mark.parametrize("swizzle", [32, 64, 128])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_swizzled_load_and_store(swizzle: int, dtype: torch.dtype) -> None:
    columns, rows = swizzle // dtype.itemsize, 24
    tensor = (torch.arange(30 * 2 * columns) % 253).to(dtype).view(30, 2 * columns)
    box, corner = [columns, rows], [columns // 2, 9]
    expected, inside = cut(tensor, box, corner)
    source = guarded(tensor, "tensor")
    out = guarded_empty((rows * swizzle,), torch.uint8, "out")
    tile_of(source, box, corner, swizzle).load(out.data_ptr())
    assert torch.equal(out, swizzle_bytes(expected, swizzle))

    target = guarded_empty(tensor.shape, dtype, "target")
    target.zero_()
    out = guarded(out, "in")
    tile_of(target, box, corner, swizzle).store(out.data_ptr(), False)
    written = torch.zeros_like(tensor)
    written[9:30, columns // 2 : columns // 2 + columns] = expected[inside].view(21, columns)
    assert torch.equal(target, written)


@pytest.mark.parametrize("rank", range(1, 6))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32])
@pytest.mark.parametrize("adds", [False, True])
def test_store_and_sum(rank: int, dtype: torch.dtype, adds: bool) -> None:
    before = tensor_of(rank, dtype)
    target = guarded_empty(before.shape, dtype, "target")
    target.copy_(before)
    box = BOXES[rank - 1]
    corner = [-3] + [SIZES[i] - box[i] + 1 for i in range(1, rank)]
    tile = torch.arange(torch.Size(box).numel()).remainder(17).to(dtype).view(box[::-1])
    tile = guarded(tile, "in")
    tile_of(target, box, corner).store(tile.data_ptr(), adds)
    expected = before.clone()
    for place in itertools.product(*(range(extent) for extent in box[::-1])):
        at = tuple(first + i for first, i in zip(corner[::-1], place, strict=True))
        if all(0 <= i < size for i, size in zip(at, before.shape, strict=True)):
            expected[at] = before[at] + tile[place] if adds else tile[place]
    assert torch.equal(target, expected)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_bulk_copy(policy: Policy) -> None:
    policy.use()
    data = torch.arange(4096).to(torch.uint8)
    for size in (16, 4096):
        source = guarded(data[:size], "in")
        out = guarded_empty((size,), torch.uint8, "out")
        simt.bulk_copy(source.data_ptr(), out.data_ptr(), size)
        assert int(out[0]) == int(data[0]) ^ 0xFF
        assert torch.equal(out[1:], data[1:size])


def test_bulk_copy_checks_size_and_alignment() -> None:
    data = torch.zeros(64, dtype=torch.uint8)
    with pytest.raises(simt.Error, match=r"bulk.*size must be a positive multiple of 16, not 24"):
        simt.bulk_copy(data.data_ptr(), data.data_ptr(), 24)
    with pytest.raises(simt.Error, match=r"bulk.*misaligned"):
        simt.bulk_copy(data.data_ptr() + 8, data.data_ptr(), 16)


WRONG_MAPS = {
    "sizes": ({"sizes": [64] * 6, "strides_bytes": [128] * 5, "box": [64] * 6}, "must name 1 to 5 dimensions, not 6"),
    "strides_bytes": ({"strides_bytes": [128, 128]}, "every dimension but the innermost: 1, not 2"),
    "box": ({"box": [64]}, "must name 2 dimensions, not 1"),
    "base": ({"base": 1024 + 8}, "aligned to 16 bytes"),
    "sizes[1]": ({"sizes": [64, 0]}, "must be in"),
    "strides_bytes[0]": ({"strides_bytes": [136]}, "a multiple of 16 below 2.40, not 136"),
    "box[1]": ({"box": [64, 257]}, "in .1, 256., not 257"),
    "box[0]": ({"box": [65, 8]}, "a multiple of 16 bytes, not 130"),
    "box[0] ": ({"box": [128, 8]}, "at most the 128 bytes of the swizzle, not 256"),
}


def map_with(**changes: Any) -> Any:
    valid: dict[str, Any] = {
        "element": "bfloat16",
        "base": 1024,
        "sizes": [64, 100],
        "strides_bytes": [128],
        "box": [64, 8],
        "swizzle": 128,
    }
    return simt.Tile(**(valid | changes))


@pytest.mark.parametrize("argument", WRONG_MAPS)
def test_wrong_map_is_refused_by_name(argument: str) -> None:
    changes, reason = WRONG_MAPS[argument]
    with pytest.raises(ValueError, match=r"make_tensor_map: .*" + reason) as error:
        map_with(**changes).make_map()
    assert str(error.value).startswith(f"make_tensor_map: {argument.strip()} ")


@pytest.mark.parametrize("argument", ["sizes[1]", "base", "strides_bytes[0]", "box[1]", "box[0]", "box[0] "])
def test_emulated_driver_refuses_likewise(argument: str) -> None:
    assert map_with().encode() == 0
    assert map_with(**WRONG_MAPS[argument][0]).encode() == 1  # CUDA_ERROR_INVALID_VALUE
    assert map_with().encode(aligned_map=False) == 1
