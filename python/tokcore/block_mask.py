"""Block masks: which blocks of the attention matrix are computed, one bit a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokcore.ops import _checks as checks

BLOCKS = ((64, 64), (128, 64), (64, 128), (128, 128))
"""The supported block sizes (queries, keys)."""

_WORD = 32


def check_block(require: checks.Require, block: object) -> None:
    """``block`` is one of :data:`BLOCKS`."""
    known = isinstance(block, Sequence) and tuple(block) in BLOCKS
    require(known, "block", lambda: " or ".join(map(str, BLOCKS)), lambda: str(block))


def check_lengths(require: checks.Require, shape: object) -> None:
    """``shape`` is (M, N), two ints that are not negative."""
    pair = isinstance(shape, Sequence) and len(shape) == 2 and all(isinstance(n, int | torch.SymInt) for n in shape)
    require(pair, "shape", lambda: "(M, N), two ints", lambda: str(shape), TypeError)
    assert isinstance(shape, Sequence)
    require(shape[0] >= 0 and shape[1] >= 0, "shape", lambda: "(M, N) with M, N >= 0", lambda: str(tuple(shape)))


class BlockMask:
    """Which blocks of an attention matrix [M, N] are computed: one bit a block, ragged last blocks included.

    Block (i, j) holds the queries [i·bm, (i+1)·bm) and the keys [j·bn, (j+1)·bn). Its bit is bit j % 32 of word
    j // 32 of row i. Bits past the last block mean nothing. A mask of one batch entry or head serves them all.

    Args:
        bits: int32 [1 or B, 1 or H, ceil(M/bm), ceil(ceil(N/bn)/32)].
        block: (bm, bn): (64, 64), (128, 64), (64, 128) or (128, 128).
        shape: (M, N), queries and keys.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong rank, shape or block size.

    ``&``, ``|``, ``-`` and ``~`` are the set operations on masks of equal shape and block; leading sizes of 1 expand.
    """

    __slots__ = ("bits", "block", "shape")

    def __init__(self, bits: Tensor, block: tuple[int, int] = (64, 64), *, shape: tuple[int, int]) -> None:
        require = checks.wrapper_require("BlockMask")
        require(isinstance(bits, Tensor), "bits", lambda: "a Tensor", lambda: type(bits).__name__, TypeError)
        require(
            bits.dtype == torch.int32, "bits", lambda: "dtype int32", lambda: checks.dtype_name(bits.dtype), TypeError
        )
        check_block(require, block)
        check_lengths(require, shape)
        require(bits.dim() == 4, "bits", lambda: "4 dimensions", lambda: f"{bits.dim()}")
        rows, columns = -(-shape[0] // block[0]), -(-shape[1] // block[1])
        words = -(-columns // _WORD)
        require(
            bits.size(2) == rows and bits.size(3) == words,
            "bits",
            lambda: f"shape [B, H, {rows}, {words}] (blocks of shape {tuple(shape)}, 32 columns a word)",
            lambda: checks.sizes(bits.shape),
        )
        self.bits = bits
        self.block = (block[0], block[1])
        self.shape = (shape[0], shape[1])

    @property
    def num_blocks(self) -> tuple[int, int]:
        """Blocks along the queries and along the keys, the ragged ones included."""
        return -(-self.shape[0] // self.block[0]), -(-self.shape[1] // self.block[1])

    @property
    def device(self) -> torch.device:
        """Where the bits are."""
        return self.bits.device

    @classmethod
    def from_dense(cls, dense: Tensor, block: tuple[int, int] = (64, 64), *, shape: tuple[int, int]) -> BlockMask:
        """From one bool a block: [Mb, Nb], [H, Mb, Nb] or [B, H, Mb, Nb], Mb = ceil(M/bm) and Nb = ceil(N/bn)."""
        require = checks.wrapper_require("BlockMask.from_dense")
        require(isinstance(dense, Tensor), "dense", lambda: "a Tensor", lambda: type(dense).__name__, TypeError)
        require(
            dense.dtype == torch.bool, "dense", lambda: "dtype bool", lambda: checks.dtype_name(dense.dtype), TypeError
        )
        check_block(require, block)
        check_lengths(require, shape)
        require(2 <= dense.dim() <= 4, "dense", lambda: "2 to 4 dimensions", lambda: f"{dense.dim()}")
        rows, columns = -(-shape[0] // block[0]), -(-shape[1] // block[1])
        require(
            dense.size(-2) == rows and dense.size(-1) == columns,
            "dense",
            lambda: f"shape [..., {rows}, {columns}] (blocks of shape {tuple(shape)})",
            lambda: checks.sizes(dense.shape),
        )
        while dense.dim() < 4:
            dense = dense.unsqueeze(0)
        return cls(_pack(dense), block, shape=shape)

    @classmethod
    def from_lists(
        cls, indices: Tensor, counts: Tensor, block: tuple[int, int] = (64, 64), *, shape: tuple[int, int]
    ) -> BlockMask:
        """From the kept columns of every row: row r keeps ``indices[..., r, :counts[..., r]]``, in any order.

        Args:
            indices: int32 or int64 [..., Mb, K]; the entries past a row's count are not read.
            counts: int32 or int64 [..., Mb], values in [0, K].
            block: (bm, bn).
            shape: (M, N).
        """
        require = checks.wrapper_require("BlockMask.from_lists")
        for name, value in {"indices": indices, "counts": counts}.items():
            kind = type(value).__name__
            require(isinstance(value, Tensor), name, lambda: "a Tensor", lambda kind=kind: kind, TypeError)  # type: ignore[misc]
            dtype = value.dtype
            require(
                dtype in (torch.int32, torch.int64),
                name,
                lambda: "dtype int32 or int64",
                lambda dtype=dtype: checks.dtype_name(dtype),  # type: ignore[misc]
                TypeError,
            )
        check_block(require, block)
        check_lengths(require, shape)
        rows, columns = -(-shape[0] // block[0]), -(-shape[1] // block[1])
        require(2 <= indices.dim() <= 4, "indices", lambda: "2 to 4 dimensions", lambda: f"{indices.dim()}")
        require(
            indices.size(-2) == rows,
            "indices",
            lambda: f"shape [..., {rows}, K] (rows of blocks of shape {tuple(shape)})",
            lambda: checks.sizes(indices.shape),
        )
        require(
            counts.shape == indices.shape[:-1],
            "counts",
            lambda: f"shape {checks.sizes(indices.shape[:-1])} (indices without the last dimension)",
            lambda: checks.sizes(counts.shape),
        )
        listed = indices.size(-1)
        least, most = _extremes(counts)
        require(
            least >= 0 and most <= listed,
            "counts",
            lambda: f"values in [0, {listed}]",
            lambda: f"values in [{least}, {most}]",
        )
        used = torch.arange(listed, device=indices.device) < counts.unsqueeze(-1)
        named = torch.where(used, indices, 0).long()
        low, high = _extremes(named)
        require(
            low >= 0 and (columns == 0 or high < columns),
            "indices",
            lambda: f"values in [0, {columns})",
            lambda: f"values in [{low}, {high}]",
        )
        # One column more takes what is not used.
        dense = torch.zeros((*indices.shape[:-1], columns + 1), dtype=torch.bool, device=indices.device)
        dense.scatter_(-1, torch.where(used, named, columns), True)
        return cls.from_dense(dense[..., :columns], block, shape=shape)

    @classmethod
    def from_flex(cls, flex: Any, *, partial: str = "raise") -> BlockMask:
        """From a ``torch.nn.attention.flex_attention.BlockMask``.

        Such a mask may hold blocks of which a function admits only some elements. A bit cannot say that:
        ``partial="raise"`` refuses them, ``partial="keep"`` keeps them whole, which is right where ``causal=True`` of
        the attention cuts the same elements.
        """
        require = checks.wrapper_require("BlockMask.from_flex")
        fields = ("kv_num_blocks", "kv_indices", "BLOCK_SIZE", "seq_lengths")
        require(
            all(hasattr(flex, field) for field in fields),
            "flex",
            lambda: "a BlockMask of torch.nn.attention.flex_attention",
            lambda: type(flex).__name__,
            TypeError,
        )
        checks.check_choice(require, "partial", partial, ("raise", "keep"))
        block, shape = tuple(flex.BLOCK_SIZE), tuple(flex.seq_lengths)
        check_block(require, block)
        count = int(flex.kv_num_blocks.sum())
        require(
            partial == "keep" or count == 0 or _admits_everything(flex),
            "flex",
            lambda: "only whole blocks with partial='raise'",
            lambda: f"{count} blocks that its mask_mod admits in part",
        )
        lists = [(flex.kv_indices, flex.kv_num_blocks)]
        if flex.full_kv_num_blocks is not None:
            lists.append((flex.full_kv_indices, flex.full_kv_num_blocks))
        masks = [cls.from_lists(indices, counts, block, shape=shape) for indices, counts in lists]
        return masks[0] if len(masks) == 1 else masks[0] | masks[1]

    @classmethod
    def full(
        cls, shape: tuple[int, int], block: tuple[int, int] = (64, 64), device: torch.device | str = "cpu"
    ) -> BlockMask:
        """Every block kept: dense attention."""
        check_block(checks.wrapper_require("BlockMask.full"), block)
        rows, columns = -(-shape[0] // block[0]), -(-shape[1] // block[1])
        return cls.from_dense(torch.ones(rows, columns, dtype=torch.bool, device=device), block, shape=shape)

    def to_dense(self) -> Tensor:
        """One bool a block, [1 or B, 1 or H, ceil(M/bm), ceil(N/bn)]."""
        shifts = torch.arange(_WORD, dtype=torch.int32, device=self.device)
        flags = (self.bits.unsqueeze(-1) >> shifts) & 1
        return flags.flatten(-2)[..., : self.num_blocks[1]].bool()

    def to_elements(self) -> Tensor:
        """One bool an element of the attention matrix, [1 or B, 1 or H, M, N]: M·N bytes, for references and plots."""
        dense = self.to_dense()
        dense = dense.repeat_interleave(self.block[0], -2).repeat_interleave(self.block[1], -1)
        return dense[..., : self.shape[0], : self.shape[1]]

    def density(self) -> float:
        """The share of blocks that are kept, of all batch entries and heads of the mask; 0 where there is no block."""
        dense = self.to_dense()
        return float(dense.sum()) / dense.numel() if dense.numel() else 0.0

    def counts(self) -> Tensor:
        """int64 [1 or B, 1 or H, ceil(M/bm)]: the kept blocks of every row."""
        return self.to_dense().sum(-1)

    def to(self, device: torch.device | str) -> BlockMask:
        """The same mask on another device."""
        return BlockMask(self.bits.to(device), self.block, shape=self.shape)

    def equal(self, other: BlockMask) -> bool:
        """Whether both keep the same blocks, of the same size and shape and with equal leading sizes."""
        same = self.block == other.block and self.shape == other.shape and self.bits.shape == other.bits.shape
        return same and torch.equal(self.to_dense(), other.to_dense())

    def plot(self, batch: int = 0, head: int = 0, axes: Any = None) -> Any:
        """Draws one batch entry and head with matplotlib, kept blocks dark; returns the axes. ``axes`` may be given."""
        require = checks.wrapper_require("BlockMask.plot")
        for name, value, size in (("batch", batch, self.bits.size(0)), ("head", head, self.bits.size(1))):
            checks.check_count(require, name, value, 0, size - 1, "of the mask")
        if axes is None:
            from matplotlib import pyplot

            _, axes = pyplot.subplots()
        rows, columns = self.shape
        picture = self.to_dense()[batch, head].cpu().numpy()
        (bm, bn), (mb, nb) = self.block, self.num_blocks
        axes.imshow(picture, cmap="Greys", vmin=0, vmax=1, interpolation="nearest", extent=(0, nb * bn, mb * bm, 0))
        axes.set(xlim=(0, columns), ylim=(rows, 0), xlabel="key", ylabel="query")
        axes.set_title(f"{100 * float(picture.mean() if picture.size else 0):.1f} % of {bm}x{bn} blocks kept")
        return axes

    def __and__(self, other: BlockMask) -> BlockMask:
        return self._joined(other, "&", torch.bitwise_and)

    def __or__(self, other: BlockMask) -> BlockMask:
        return self._joined(other, "|", torch.bitwise_or)

    def __sub__(self, other: BlockMask) -> BlockMask:
        return self._joined(other, "-", lambda a, b: a & ~b)

    def __invert__(self) -> BlockMask:
        everything = BlockMask.full(self.shape, self.block, self.device)
        return BlockMask(~self.bits & everything.bits, self.block, shape=self.shape)

    def _joined(self, other: BlockMask, sign: str, operation: Any) -> BlockMask:
        require = checks.wrapper_require(f"BlockMask.{sign}")
        kind = type(other).__name__
        require(isinstance(other, BlockMask), "other", lambda: "a BlockMask", lambda: kind, TypeError)
        require(
            self.block == other.block and self.shape == other.shape,
            "other",
            lambda: f"block {self.block} and shape {self.shape}",
            lambda: f"block {other.block} and shape {other.shape}",
        )
        sizes = tuple(zip(self.bits.shape[:2], other.bits.shape[:2], strict=True))
        require(
            all(mine == theirs or mine == 1 or theirs == 1 for mine, theirs in sizes),
            "other",
            lambda: f"{sizes[0][0]} or 1 batch entries, {sizes[1][0]} or 1 heads",
            lambda: f"{sizes[0][1]} and {sizes[1][1]}",
        )
        return BlockMask(operation(self.bits, other.bits), self.block, shape=self.shape)

    def __repr__(self) -> str:
        batch, heads = self.bits.shape[:2]
        return f"BlockMask(shape={self.shape}, block={self.block}, batch={batch}, heads={heads}, device={self.device})"


def _pack(dense: Tensor) -> Tensor:
    """bool [..., columns] as int32 words: bit 31 is the sign, and as bits are distinct no sum carries."""
    columns = dense.size(-1)
    words = -(-columns // _WORD)
    padded = torch.nn.functional.pad(dense, (0, words * _WORD - columns))
    shifts = torch.arange(_WORD, dtype=torch.int32, device=dense.device)
    spread = padded.view(*dense.shape[:-1], words, _WORD)
    return (spread.to(torch.int32) << shifts).sum(-1, dtype=torch.int32)


def _extremes(values: Tensor) -> tuple[int, int]:
    """The least and the greatest value; 0 and 0 of an empty tensor."""
    if values.numel() == 0:
        return 0, 0
    least, most = values.aminmax()
    return int(least), int(most)


def _admits_everything(flex: Any) -> bool:
    from torch.nn.attention.flex_attention import noop_mask

    return flex.mask_mod is noop_mask
