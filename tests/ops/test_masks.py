"""Ready-made masks: each keeps exactly the blocks that its pattern of elements touches."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tokcore import BlockMask, attention_block_scores, masks
from tokcore.block_mask import BLOCKS


def blocks_of(elements: Tensor, block: tuple[int, int]) -> Tensor:
    """Which blocks hold at least one element."""
    M, N = elements.shape[-2:]
    padded = torch.nn.functional.pad(elements, (0, -N % block[1], 0, -M % block[0]))
    rows, columns = padded.size(-2) // block[0], padded.size(-1) // block[1]
    return padded.view(*elements.shape[:-2], rows, block[0], columns, block[1]).any(-1).any(-2)


def positions(M: int, N: int) -> tuple[Tensor, Tensor]:
    return torch.arange(M).unsqueeze(1) + N - M, torch.arange(N)


LENGTHS = [(1, 1), (64, 64), (65, 130), (300, 300), (200, 777)]


@pytest.mark.parametrize(("M", "N"), LENGTHS)
@pytest.mark.parametrize("block", BLOCKS)
def test_causal(M: int, N: int, block: tuple[int, int]) -> None:
    m, n = positions(M, N)
    assert torch.equal(masks.causal((M, N), block=block).to_dense()[0, 0], blocks_of(n <= m, block))


@pytest.mark.parametrize(("M", "N"), LENGTHS)
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("window", [1, 63, 64, 65, 200, 10**6])
@pytest.mark.parametrize("sinks", [0, 1, 64, 65])
def test_sliding_window(M: int, N: int, block: tuple[int, int], window: int, sinks: int) -> None:
    m, n = positions(M, N)
    causal = masks.sliding_window((M, N), window, sinks=sinks, block=block)
    expected = (n <= m) & ((n > m - window) | (n < sinks))
    assert torch.equal(causal.to_dense()[0, 0], blocks_of(expected, block))
    both = masks.sliding_window((M, N), window, sinks=sinks, causal=False, block=block)
    expected = ((n - m).abs() < window) | (n < sinks)
    assert torch.equal(both.to_dense()[0, 0], blocks_of(expected, block))


def test_a_shape_is_a_window_with_sinks() -> None:
    mask = masks.a_shape((1000, 1000), sinks=30, window=100)
    assert mask.equal(masks.sliding_window((1000, 1000), 100, sinks=30))


@pytest.mark.parametrize(("M", "N"), [(300, 300), (130, 333), (64, 64)])
@pytest.mark.parametrize("block", BLOCKS)
def test_vertical_slash(M: int, N: int, block: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, M, 32, generator=generator), torch.randn(2, 2, N, 32, generator=generator)
    vertical, slash, last = 5, 3, 40
    mask = masks.vertical_slash(q, k, vertical=vertical, slash=slash, last_queries=last, block=block)
    m, n = positions(M, N)
    z = q[:, :, -last:] @ k.repeat_interleave(2, 1).transpose(-1, -2) / math.sqrt(32)
    weights = z.masked_fill(n > m[-last:], -math.inf).softmax(-1)
    for b in range(2):
        for h in range(4):
            w = weights[b, h]
            columns = w.sum(0).topk(vertical).indices
            distances = torch.zeros(N)
            for row in range(w.size(0)):
                for column in range(int(m[M - w.size(0) + row]) + 1):
                    distances[int(m[M - w.size(0) + row]) - column] += w[row, column]
            chosen = [*distances.topk(slash).indices.tolist(), 0]
            kept = (n <= m) & torch.isin(n, columns)
            for distance in chosen:
                kept = kept | (m - n == distance)
            assert torch.equal(mask.to_dense()[b, h], blocks_of(kept, block)), (b, h)


def test_pooled_scores() -> None:
    q, k = torch.randn(1, 2, 130, 32), torch.randn(1, 1, 200, 32)
    pooled = masks.pooled_scores(q, k, scale=0.5, causal=True)
    assert pooled.shape == (1, 2, 3, 4)
    expected = 0.5 * q[0, 1, 128:].mean(0) @ k[0, 0, 192:].mean(0)
    torch.testing.assert_close(pooled[0, 1, 2, 3], expected)
    m, n = positions(130, 200)
    assert torch.equal(pooled[0, 0] > -math.inf, blocks_of(n <= m, (64, 64)))


def test_top_k_takes_the_best_and_the_lower_among_equals() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0], [float("nan"), -math.inf, 0.0, -math.inf, float("nan")]])
    mask = masks.top_k(scores, 2, (128, 320))
    assert mask.to_dense()[0, 0].int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 1, 0, 0]]
    assert masks.top_k(scores, 99, (128, 320)).counts().flatten().tolist() == [5, 1]
    assert masks.top_k(scores, 0, (128, 320)).density() == 0.0


@pytest.mark.parametrize("mass", [0.1, 0.5, 0.9, 1.0])
def test_mass_threshold_is_the_fewest_that_reach_it(mass: float) -> None:
    scores = torch.randn(2, 3, 4, 9, generator=torch.Generator().manual_seed(0)) * 2
    dense = masks.mass_threshold(scores, mass, (256, 576)).to_dense()
    weights = scores.softmax(-1)
    reached = (weights * dense).sum(-1)
    assert (reached >= mass - 1e-5).all()
    least = torch.where(dense, weights, 2.0).amin(-1)
    assert (reached - least < mass + 1e-5).all()  # without the smallest one it falls short
    assert (torch.where(dense, 0.0, weights).amax(-1) <= least).all()


def test_mass_threshold_never_keeps_what_cannot_be_seen() -> None:
    scores = torch.tensor([[0.0, -math.inf, 1.0], [-math.inf, -math.inf, -math.inf]])
    assert masks.mass_threshold(scores, 1.0, (128, 192)).to_dense()[0, 0].int().tolist() == [[1, 0, 1], [0, 0, 0]]


def test_routing_by_true_weights_keeps_the_mass() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = 4 * torch.randn(1, 2, 256, 32, generator=generator), torch.randn(1, 2, 512, 32, generator=generator)
    sums = attention_block_scores(q, k)
    mask = masks.mass_threshold(sums.log(), 0.8, (256, 512))
    assert ((sums * mask.to_dense()).sum(-1) >= 0.8 * 64 - 1e-3).all()
    assert 0.0 < mask.density() < 1.0


def radial_elements(frames: int, size: int) -> Tensor:
    token = torch.arange(frames * size)
    f, s = token // size, token % size
    apart = (f.unsqueeze(1) - f).abs()
    space = (s.unsqueeze(1) - s).abs()
    kept = (apart <= 1) | (f == 0)
    for a in range(2, frames):
        power = 2 ** int(math.log2(a))
        window = size // power
        near = space < window if window >= 1 else (space == 0) & (a % math.ceil(power / size) == 0)
        kept |= (apart == a) & near
    return kept


@pytest.mark.parametrize(("frames", "size"), [(1, 100), (5, 96), (9, 40), (21, 64), (40, 3), (33, 150)])
@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("text", [(0, 0), (0, 77), (64, 0), (10, 100)])
def test_radial(frames: int, size: int, block: tuple[int, int], text: tuple[int, int]) -> None:
    mask = masks.radial(frames, size, text=text, block=block)
    length = sum(text) + frames * size
    elements = torch.ones(length, length, dtype=torch.bool)
    video = slice(text[0], text[0] + frames * size)
    elements[video, video] = radial_elements(frames, size)
    assert mask.shape == (length, length)
    assert torch.equal(mask.to_dense()[0, 0], blocks_of(elements, block))


@pytest.mark.parametrize("text", [(0, 0), (128, 0), (0, 77), (128, 77)])
def test_sliding_tiles(text: tuple[int, int]) -> None:
    grid, tile, window = (8, 24, 16), (4, 8, 4), (1, 3, 3)
    mask = masks.sliding_tiles(grid, tile, window, text=text, block=(128, 64))
    order = masks.tile_order(grid, tile)
    assert torch.equal(order.sort().values, torch.arange(8 * 24 * 16))
    f, h, w = order // (24 * 16), order // 16 % 24, order % 16
    seen = torch.ones(order.numel(), order.numel(), dtype=torch.bool)
    for position, edge, count, reach in zip((f, h, w), tile, (2, 3, 4), (0, 1, 1), strict=True):
        place = position // edge
        center = place.clamp(reach, count - 1 - reach)
        seen &= (center.unsqueeze(1) - place).abs() <= reach
    length = sum(text) + order.numel()
    elements = torch.ones(length, length, dtype=torch.bool)
    video = slice(text[0], text[0] + order.numel())
    elements[video, video] = seen
    assert torch.equal(mask.to_dense()[0, 0], blocks_of(elements, (128, 64)))
    if text == (0, 0):
        assert torch.equal(mask.to_elements()[0, 0], elements)  # exact, and every tile sees equally many
        assert (mask.counts() == 1 * 3 * 3 * 2).all()


def test_documents() -> None:
    mask = masks.documents([128, 64, 200])
    token = torch.repeat_interleave(torch.arange(3), torch.tensor([128, 64, 200]))
    elements = token.unsqueeze(1) == token
    assert torch.equal(mask.to_elements()[0, 0], elements)
    with pytest.raises(ValueError, match=r"argument 'lengths': expected documents that end at multiples of 64 .* 100"):
        masks.documents([100, 92])
    loose = masks.documents([100, 92, 0, 30], aligned=False)
    token = torch.repeat_interleave(torch.arange(4), torch.tensor([100, 92, 0, 30]))
    assert torch.equal(loose.to_dense()[0, 0], blocks_of(token.unsqueeze(1) == token, (64, 64)))


def test_masks_combine() -> None:
    shape = (1000, 1000)
    window, first = masks.sliding_window(shape, 100), masks.sliding_window(shape, 1, sinks=1)
    assert (window | first).density() < window.density() + first.density()
    assert (window - masks.causal(shape)).density() == 0.0
    assert isinstance(window & first, BlockMask)


Q, K = torch.zeros(1, 2, 100, 32), torch.zeros(1, 1, 100, 32)
BAD: list[tuple[str, tuple[Any, ...], dict[str, Any], str]] = [
    ("sliding_window", ((64, 64), 0), {}, "argument 'window': expected a value in"),
    ("sliding_window", ((64, 64), 1), {"block": (64, 32)}, "argument 'block': expected"),
    ("causal", ((64,),), {}, "argument 'shape': expected"),
    ("vertical_slash", (Q, K), {"vertical": 101, "slash": 1}, r"argument 'vertical': expected a value in \[0, 100\]"),
    ("vertical_slash", (Q, K[:, :, :50]), {"vertical": 1, "slash": 1}, r"argument 'k': expected N >= 100"),
    ("pooled_scores", (Q, K[..., :16]), {}, "argument 'k': expected shape"),
    ("top_k", (torch.zeros(2, 2), 1, (64, 64)), {}, r"argument 'scores': expected shape \[..., 1, 1\]"),
    ("mass_threshold", (torch.zeros(1, 1), 1.5, (64, 64)), {}, r"argument 'mass': expected a value in \(0, 1\]"),
    ("mass_threshold", (torch.zeros(1, 1), 0.0, (64, 64)), {}, r"argument 'mass': expected a finite value > 0"),
    ("radial", (0, 10), {}, "argument 'num_frames': expected a value in"),
    ("radial", (1, 10), {"text": (-1, 0)}, "argument 'text': expected"),
    ("sliding_tiles", ((4, 8, 8), (3, 8, 8), (1, 1, 1)), {}, "argument 'tile': expected edges that divide"),
    ("sliding_tiles", ((4, 8, 8), (4, 4, 2), (1, 1, 1)), {}, "argument 'tile': expected a size that is a multiple"),
    ("sliding_tiles", ((4, 8, 8), (4, 4, 4), (1, 2, 1)), {}, "argument 'window': expected three odd sizes"),
    ("documents", ([64, -1],), {}, "argument 'lengths': expected ints >= 0"),
]


@pytest.mark.parametrize(("name", "arguments", "options", "text"), BAD, ids=[f"{n}-{t}" for n, _, _, t in BAD])
def test_bad_input(name: str, arguments: tuple[Any, ...], options: dict[str, Any], text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=rf"^tokcore\.masks\.{name}: {text}"):
        getattr(masks, name)(*arguments, **options)
