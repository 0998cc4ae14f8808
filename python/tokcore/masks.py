"""Ready-made block masks, each a :class:`tokcore.BlockMask`; ``&``, ``|``, ``-`` and ``~`` combine them.

A block is kept where it holds at least one element of the pattern, so that a mask is never smaller than its pattern.
Patterns of positions need lengths alone; :func:`vertical_slash` and :func:`block_sparse_estimate` look at q and k;
:func:`top_k` and :func:`mass_threshold` take scores of blocks from anywhere, such as :func:`pooled_scores`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tokcore.block_mask import BlockMask, check_block, check_lengths
from tokcore.ops import _attention_checks as attention
from tokcore.ops import _checks as checks

Block = tuple[int, int]
Device = torch.device | str


def causal(shape: tuple[int, int], *, block: Block = (64, 64), device: Device = "cpu") -> BlockMask:
    """Blocks in which some query sees some key, ends aligned; the attention's ``causal`` cuts their elements."""
    rows, columns = _ranges("causal", shape, block, device)
    return BlockMask.from_dense(columns.first <= rows.last + shape[1] - shape[0], block, shape=shape)


def sliding_window(
    shape: tuple[int, int],
    window: int,
    *,
    sinks: int = 0,
    causal: bool = True,
    block: Block = (64, 64),
    device: Device = "cpu",
) -> BlockMask:
    """The ``window`` keys up to each query and the first ``sinks`` keys: StreamingLLM (arXiv 2309.17453).

    Query m stands at key m + N - M. Without ``causal`` the window holds the keys nearer than ``window`` on both sides.
    """
    require = checks.wrapper_require("masks.sliding_window")
    checks.check_count(require, "window", window, 1, 2**62, "keys")
    checks.check_count(require, "sinks", sinks, 0, 2**62, "keys")
    rows, columns = _ranges("sliding_window", shape, block, device)
    offset = shape[1] - shape[0]
    before = columns.last > rows.first + offset - window
    after = columns.first <= rows.last + offset if causal else columns.first < rows.last + offset + window
    kept = before & after
    if sinks:
        first = columns.first < sinks
        kept = kept | (first & (columns.first <= rows.last + offset) if causal else first)
    return BlockMask.from_dense(kept, block, shape=shape)


def a_shape(
    shape: tuple[int, int], *, sinks: int, window: int, block: Block = (64, 64), device: Device = "cpu"
) -> BlockMask:
    """MInference's A-shape (arXiv 2407.02490): the first keys and a causal window, seen from every query."""
    return sliding_window(shape, window, sinks=sinks, block=block, device=device)


def vertical_slash(
    q: Tensor,
    k: Tensor,
    *,
    vertical: int,
    slash: int,
    last_queries: int = 64,
    scale: float | None = None,
    block: Block = (64, 64),
) -> BlockMask:
    """MInference's vertical-slash estimate (arXiv 2407.02490) for causal attention.

    The last queries' weights, summed over columns and over diagonals, choose for each head the ``vertical`` heaviest
    keys and the ``slash`` heaviest distances between query and key; the diagonal itself is always kept.

    Args:
        q: [B, H, M, D]. k: [B, Hkv, N, D], N >= M.
        vertical: keys to keep. slash: distances to keep.
        last_queries: how many of the last queries to look at; their weights take last_queries·N numbers a head.
        scale: factor of the scores; None is 1/sqrt(D).
        block: (bm, bn).
    """
    require = checks.wrapper_require("masks.vertical_slash")
    factor = attention.check_public(require, q, k, None, scale)
    M, N = q.size(2), k.size(2)
    require(N >= M, "k", lambda: f"N >= {M} (M of q)", lambda: f"{N}")
    for name, value in {"vertical": vertical, "slash": slash}.items():
        checks.check_count(require, name, value, 0, N, "N of k")
    checks.check_count(require, "last_queries", last_queries, 1, 2**62, "queries")
    check_block(require, block)
    count = min(last_queries, M)
    keys = k.float().repeat_interleave(q.size(1) // max(k.size(1), 1), 1)
    z = factor * (q[:, :, M - count :].float() @ keys.transpose(-1, -2))
    position = torch.arange(N - count, N, device=q.device).unsqueeze(1)
    distance = position - torch.arange(N, device=q.device)
    weights = z.masked_fill(distance < 0, -math.inf).softmax(-1)  # [B, H, count, N]
    columns = weights.sum(-2).topk(vertical, -1).indices
    by_distance = weights.new_zeros(*weights.shape[:2], N)
    index = distance.clamp(min=0).expand(weights.shape).flatten(-2)
    by_distance.scatter_add_(-1, index, weights.flatten(-2))
    slashes = by_distance.topk(slash, -1).indices

    rows, blocks = _ranges("vertical_slash", (M, N), block, q.device)
    num_columns = -(-N // block[1])
    seen = blocks.first <= rows.last + N - M
    dense = torch.zeros(*weights.shape[:2], num_columns, dtype=torch.bool, device=q.device)
    dense.scatter_(-1, columns // block[1], True)
    kept = dense.unsqueeze(-2) & seen
    # Distance d meets block (i, j) if some query position p of the row has p - d among its keys: d in [low, high].
    chosen = torch.zeros(*weights.shape[:2], N + 1, dtype=torch.int64, device=q.device)
    chosen[..., :-1].scatter_(-1, slashes, 1)
    chosen[..., 0] = 1
    until = torch.nn.functional.pad(chosen.cumsum(-1), (1, 0))[..., : N + 1]  # chosen distances below each
    low = (rows.first + N - M - blocks.last).clamp(0, N)
    high = (rows.last + N - M - blocks.first + 1).clamp(0, N)
    kept = kept | (until[..., high] > until[..., low]) & seen
    return BlockMask.from_dense(kept, block, shape=(M, N))


def pooled_scores(
    q: Tensor, k: Tensor, *, scale: float | None = None, causal: bool = False, block: Block = (64, 64)
) -> Tensor:
    """Scores of blocks from the means of their queries and keys, [B, H, ceil(M/bm), ceil(N/bn)] fp32.

    scale·mean(q)·mean(k)ᵀ; -inf where ``causal`` leaves nothing of a block.
    """
    require = checks.wrapper_require("masks.pooled_scores")
    factor = attention.check_public(require, q, k, None, scale)
    check_block(require, block)
    rows = _pooled(q, block[0])
    columns = _pooled(k, block[1]).repeat_interleave(q.size(1) // max(k.size(1), 1), 1)
    z = factor * (rows @ columns.transpose(-1, -2))
    return _unseen(z, (q.size(2), k.size(2)), causal, block)


def block_sparse_estimate(
    q: Tensor, k: Tensor, *, blocks: int, scale: float | None = None, causal: bool = True, block: Block = (64, 64)
) -> BlockMask:
    """MInference's block-sparse estimate (arXiv 2407.02490): of every row of blocks the best by pooled q and k."""
    return top_k(
        pooled_scores(q, k, scale=scale, causal=causal, block=block), blocks, (q.size(2), k.size(2)), block=block
    )


def top_k(scores: Tensor, count: int, shape: tuple[int, int], *, block: Block = (64, 64)) -> BlockMask:
    """Of every row of blocks the ``count`` with the greatest scores, the lower index first among equals (BiFormer,
    arXiv 2303.08810). -inf and NaN are never kept.

    Args:
        scores: real [..., ceil(M/bm), ceil(N/bn)] of two to four dimensions.
        count: blocks to keep in a row.
        shape: (M, N).
        block: (bm, bn).
    """
    require = checks.wrapper_require("masks.top_k")
    _check_scores(require, scores, shape, block)
    checks.check_count(require, "count", count, 0, 2**62, "blocks")
    ranked, order = _ranked(scores)
    kept = torch.zeros_like(scores, dtype=torch.bool)
    best = order[..., :count]
    kept.scatter_(-1, best, ranked[..., :count] > -math.inf)
    return BlockMask.from_dense(kept, block, shape=shape)


def mass_threshold(scores: Tensor, mass: float, shape: tuple[int, int], *, block: Block = (64, 64)) -> BlockMask:
    """Of every row of blocks the fewest whose softmax weights reach ``mass`` (DHSA, arXiv 2510.24606).

    Args:
        scores: real [..., ceil(M/bm), ceil(N/bn)] of two to four dimensions; -inf and NaN are never kept.
        mass: share of the weights in (0, 1] to reach.
        shape: (M, N).
        block: (bm, bn).
    """
    require = checks.wrapper_require("masks.mass_threshold")
    _check_scores(require, scores, shape, block)
    checks.check_positive(require, "mass", mass, optional=False)
    require(mass <= 1.0, "mass", lambda: "a value in (0, 1]", lambda: f"{mass}")
    ranked, order = _ranked(scores)
    present = ranked > -math.inf
    highest = ranked[..., :1].masked_fill(~present[..., :1], 0.0)
    weights = (ranked - highest).exp().masked_fill(~present, 0.0)
    total = weights.sum(-1, keepdim=True)
    before = weights.cumsum(-1) - weights
    kept = torch.zeros_like(scores, dtype=torch.bool)
    kept.scatter_(-1, order, present & (before < mass * total))
    return BlockMask.from_dense(kept, block, shape=shape)


def radial(
    num_frames: int,
    tokens_per_frame: int,
    *,
    text: Sequence[int] = (0, 0),
    block: Block = (64, 64),
    device: Device = "cpu",
) -> BlockMask:
    """Radial attention (arXiv 2506.19852) for a video of ``num_frames`` frames in reading order.

    Neighbouring frames see one another wholly. At a distance of d >= 2 frames a token sees the tokens less than
    tokens_per_frame / 2^floor(log2 d) away from its own place; where that is less than one token, its own place in
    every ceil(2^floor(log2 d) / tokens_per_frame)-th frame. Everything sees the first frame.

    Args:
        num_frames: frames. tokens_per_frame: tokens of each.
        text: tokens before and after the video, which see and are seen by everything.
        block: (bm, bn).
        device: where the mask will be.
    """
    require = checks.wrapper_require("masks.radial")
    checks.check_count(require, "num_frames", num_frames, 1, 2**31, "frames")
    checks.check_count(require, "tokens_per_frame", tokens_per_frame, 1, 2**31, "tokens")
    _check_text(require, text)
    check_block(require, block)
    size = num_frames * tokens_per_frame
    length = text[0] + size + text[1]
    num_rows, num_columns = -(-length // block[0]), -(-length // block[1])
    # Each row of blocks is cut at frame borders into pieces of one frame; each piece sees an interval of each frame.
    starts = torch.cat([torch.arange(0, length, block[0]), text[0] + torch.arange(num_frames) * tokens_per_frame])
    starts = torch.unique(starts)
    starts = starts[(starts >= text[0]) & (starts < text[0] + size)]
    ends = torch.minimum(
        (starts // block[0] + 1) * block[0], ((starts - text[0]) // tokens_per_frame + 1) * tokens_per_frame + text[0]
    )
    frame = (starts - text[0]) // tokens_per_frame
    first = starts - text[0] - frame * tokens_per_frame
    last = ends - 1 - text[0] - frame * tokens_per_frame
    other = torch.arange(num_frames)
    apart = (frame.unsqueeze(1) - other).abs()
    halvings = torch.where(apart >= 2, apart.clamp(min=1).double().log2().floor(), 0).long()
    power = torch.ones_like(halvings) << halvings
    window = tokens_per_frame // power
    strides = -(-power // tokens_per_frame)
    reached = (window >= 1) | (apart % strides == 0)
    reach = torch.where(apart <= 1, tokens_per_frame, window.clamp(min=1)) - 1
    reach = torch.where(other == 0, tokens_per_frame - 1, reach)
    reached = reached | (other == 0)
    begin = (first.unsqueeze(1) - reach).clamp(min=0) + other * tokens_per_frame + text[0]
    end = (last.unsqueeze(1) + reach).clamp(max=tokens_per_frame - 1) + other * tokens_per_frame + text[0]
    # +1 where an interval begins, -1 after its end: positive sums are inside.
    change = torch.zeros(num_rows, num_columns + 1, dtype=torch.int64)
    row = (starts // block[0]).unsqueeze(1).expand_as(begin)
    step = reached.long()
    change.index_put_((row, begin // block[1]), step, accumulate=True)
    change.index_put_((row, end // block[1] + 1), -step, accumulate=True)
    kept = change.cumsum(-1)[:, :num_columns] > 0
    return BlockMask.from_dense(_with_text(kept, length, text, block).to(device), block, shape=(length, length))


def sliding_tiles(
    grid: Sequence[int],
    tile: Sequence[int],
    window: Sequence[int],
    *,
    text: Sequence[int] = (0, 0),
    block: Block = (64, 64),
    device: Device = "cpu",
) -> BlockMask:
    """Sliding-tile attention (arXiv 2502.04507): tiles of a video see the tiles of a window of tiles around them.

    The window is moved inwards at the borders, so that every tile sees equally many. Tokens must be in the order of
    :func:`tile_order`. The mask is exact where tiles fill whole blocks: a tile's size is a multiple of bm and bn.

    Args:
        grid: (F, H, W) tokens. tile: its edges, which divide those of the grid.
        window: edges of the window in tiles, odd and at most those of the grid of tiles.
        text: tokens before and after the video, which see and are seen by everything.
        block: (bm, bn).
        device: where the mask will be.
    """
    require = checks.wrapper_require("masks.sliding_tiles")
    tiles = _check_tiles(require, grid, tile)
    _check_text(require, text)
    check_block(require, block)
    volume = math.prod(tile)
    whole = volume % block[0] == 0 and volume % block[1] == 0
    require(whole, "tile", lambda: f"a size that is a multiple of the block {block}", lambda: f"{volume}")
    aligned = text[0] % block[0] == 0 and text[0] % block[1] == 0
    require(aligned, "text", lambda: f"a multiple of the block {block} before the video", lambda: f"{text[0]}")
    fits = len(window) == 3 and all(0 < w <= t and w % 2 == 1 for w, t in zip(window, tiles, strict=True))
    require(fits, "window", lambda: f"three odd sizes up to the grid of tiles {tiles}", lambda: f"{window}")
    seen = torch.ones((), dtype=torch.bool)
    for axis, (count, edge) in enumerate(zip(tiles, window, strict=True)):
        places = torch.arange(count)
        center = places.clamp(edge // 2, count - 1 - edge // 2)
        near = (center.unsqueeze(1) - places).abs() <= edge // 2
        view = [1] * 6
        view[axis], view[axis + 3] = count, count
        seen = seen & near.view(view)
    number = math.prod(tiles)
    dense = seen.expand(*tiles, *tiles).reshape(number, number)
    length = text[0] + math.prod(grid) + text[1]
    kept = torch.zeros(-(-length // block[0]), -(-length // block[1]), dtype=torch.bool)
    inner = dense.repeat_interleave(volume // block[0], 0).repeat_interleave(volume // block[1], 1)
    row, column = text[0] // block[0], text[0] // block[1]
    kept[row : row + inner.size(0), column : column + inner.size(1)] = inner
    return BlockMask.from_dense(_with_text(kept, length, text, block).to(device), block, shape=(length, length))


def tile_order(grid: Sequence[int], tile: Sequence[int]) -> Tensor:
    """int64 [F·H·W]: the tokens of a grid in reading order by tile, so that ``x[order]`` has tile after tile.

    ``torch.argsort(order)`` leads back.
    """
    tiles = _check_tiles(checks.wrapper_require("masks.tile_order"), grid, tile)
    index = torch.arange(math.prod(grid)).view(tiles[0], tile[0], tiles[1], tile[1], tiles[2], tile[2])
    return index.permute(0, 2, 4, 1, 3, 5).flatten()


def documents(
    lengths: Sequence[int], *, aligned: bool = True, block: Block = (64, 64), device: Device = "cpu"
) -> BlockMask:
    """Documents of the given lengths one after the other, each seeing itself alone.

    A block cannot be cut: with ``aligned`` every document but the last must end at the edge of a block, so that the
    mask is exact; without it, blocks that two documents share are kept, and those documents see one another there.
    """
    require = checks.wrapper_require("masks.documents")
    require(all(n >= 0 for n in lengths), "lengths", lambda: "ints >= 0", lambda: f"{list(lengths)}")
    check_block(require, block)
    ends = torch.tensor([0, *lengths], dtype=torch.int64).cumsum(0)
    length = int(ends[-1])
    edge = max(block)
    ragged = [int(end) for end in ends[1:] if end % edge and end != length]
    require(
        not aligned or not ragged,
        "lengths",
        lambda: f"documents that end at multiples of {edge} with aligned=True",
        lambda: f"one that ends at {ragged[0]}",
    )
    rows, columns = _ranges("documents", (length, length), block, "cpu")

    def document(position: Tensor) -> Tensor:
        return torch.searchsorted(ends, position, right=True)

    kept = (document(rows.first) <= document(columns.last)) & (document(columns.first) <= document(rows.last))
    return BlockMask.from_dense(kept.to(device), block, shape=(length, length))


class _Range:
    """First and last position of every block along one axis."""

    def __init__(self, length: int, edge: int, device: Device) -> None:
        self.first = torch.arange(0, length, edge, device=device)
        self.last = (self.first + edge).clamp(max=length) - 1


def _ranges(name: str, shape: tuple[int, int], block: Block, device: Device) -> tuple[_Range, _Range]:
    """Positions of the rows of blocks as a column, and of their columns as a row."""
    require = checks.wrapper_require(f"masks.{name}")
    check_block(require, block)
    check_lengths(require, shape)
    rows, columns = _Range(shape[0], block[0], device), _Range(shape[1], block[1], device)
    rows.first, rows.last = rows.first.unsqueeze(1), rows.last.unsqueeze(1)
    return rows, columns


def _pooled(x: Tensor, edge: int) -> Tensor:
    """Means of ``edge`` rows, the last over what is there: [B, H, M, D] -> [B, H, ceil(M/edge), D] fp32."""
    length = x.size(2)
    blocks = -(-length // edge)
    padded = torch.nn.functional.pad(x.float(), (0, 0, 0, blocks * edge - length))
    counts = (length - torch.arange(blocks, device=x.device) * edge).clamp(max=edge)
    return padded.view(*x.shape[:2], blocks, edge, x.size(3)).sum(3) / counts.unsqueeze(1)


def _unseen(scores: Tensor, shape: tuple[int, int], cut: bool, block: Block) -> Tensor:
    if not cut:
        return scores
    rows, columns = _ranges("pooled_scores", shape, block, scores.device)
    return scores.masked_fill(columns.first > rows.last + shape[1] - shape[0], -math.inf)


def _ranked(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores descending with NaN as -inf, and their indices; the lower index first among equals."""
    clean = torch.where(scores.isnan(), -math.inf, scores.float())
    found = torch.sort(clean, dim=-1, descending=True, stable=True)
    return found.values, found.indices


def _check_scores(require: checks.Require, scores: Tensor, shape: tuple[int, int], block: Block) -> None:
    require(isinstance(scores, Tensor), "scores", lambda: "a Tensor", lambda: type(scores).__name__, TypeError)
    real = scores.is_floating_point()
    require(real, "scores", lambda: "a real dtype", lambda: checks.dtype_name(scores.dtype), TypeError)
    check_block(require, block)
    check_lengths(require, shape)
    rows, columns = -(-shape[0] // block[0]), -(-shape[1] // block[1])
    require(
        2 <= scores.dim() <= 4 and scores.size(-2) == rows and scores.size(-1) == columns,
        "scores",
        lambda: f"shape [..., {rows}, {columns}] (blocks of shape {tuple(shape)})",
        lambda: checks.sizes(scores.shape),
    )


def _check_text(require: checks.Require, text: Sequence[int]) -> None:
    require(len(text) == 2 and min(text) >= 0, "text", lambda: "(before, after), two ints >= 0", lambda: f"{text}")


def _check_tiles(require: checks.Require, grid: Sequence[int], tile: Sequence[int]) -> tuple[int, int, int]:
    for name, value in {"grid": grid, "tile": tile}.items():
        three = len(value) == 3 and min(value) > 0
        require(three, name, lambda: "three ints > 0", lambda value=value: f"{value}")  # type: ignore[misc]
    divides = all(g % t == 0 for g, t in zip(grid, tile, strict=True))
    require(divides, "tile", lambda: f"edges that divide those of the grid {tuple(grid)}", lambda: f"{tuple(tile)}")
    return (grid[0] // tile[0], grid[1] // tile[1], grid[2] // tile[2])


def _with_text(kept: Tensor, length: int, text: Sequence[int], block: Block) -> Tensor:
    """Rows and columns of blocks that hold text are kept wholly."""
    rows, columns = _ranges("text", (length, length), block, "cpu")

    def has_text(positions: _Range) -> Tensor:
        return (positions.first < text[0]) | (positions.last >= length - text[1])

    return kept | has_text(rows) | has_text(columns)
