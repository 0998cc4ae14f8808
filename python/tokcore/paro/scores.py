"""What one head's attention looks like in each order of its tokens, and which blocks of it to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokcore import masks
from tokcore.ops.attention_block_scores import attention_block_scores
from tokcore.permutation import AXES, permutation_indices

RANKS = ("scores", "recall")

SPARSE_SHARE = 0.9  # of a block's entries that are small, for the block to count as sparse


@dataclass(frozen=True)
class OrderScores:
    """Of one head in each of the six orders, [6] float64."""

    sparse: Tensor  # share of blocks in which nearly all weights are below the threshold: more is better
    quantization: Tensor  # mean over blocks of the greatest weight over the mean one: less is better
    recall: Tensor | None = None  # what a mask of the wanted density would hold, where orders are ranked by it

    def loss(self, alpha: float) -> Tensor:
        """α·(1 − norm(sparse)) + (1 − α)·norm(quantization), [6]; norm maps the six values onto [0, 1]."""
        return alpha * (1 - _normalized(self.sparse)) + (1 - alpha) * _normalized(self.quantization)

    def best(self, alpha: float) -> int:
        """The code of the greatest recall if there is one, else of the least loss; the lowest among equals."""
        return int(self.loss(alpha).argmin() if self.recall is None else self.recall.argmax())


def mean_scores(found: Sequence[OrderScores]) -> OrderScores:
    """Of several samples or heads."""
    sparse, quantization = (
        torch.stack([getattr(one, name) for one in found]).mean(0) for name in ("sparse", "quantization")
    )
    held = [one.recall for one in found if one.recall is not None]
    return OrderScores(sparse, quantization, torch.stack(held).mean(0) if held else None)


def order_recall(
    q: Tensor,
    k: Tensor,
    scale: float,
    grid: Sequence[int],
    text: Sequence[int],
    block: tuple[int, int],
    density: float,
) -> Tensor:
    """[6]: of the attention of q and k [B, 1, N, D], the share that a mask of the density holds in every order."""
    forced = text_blocks(q.size(2), text, block)
    held = []
    for code in range(len(AXES)):
        mass = block_mass(q, k, scale, permutation_indices(code, grid, text, q.device), block).cpu()
        held.append(recall(mass, choose_blocks(mass, density, forced), q.size(2), block))
    return torch.tensor(held, dtype=torch.float64)


def reorder(x: Tensor, indices: Tensor) -> Tensor:
    """Tokens of x [B, 1, N, D] in another order, copied."""
    return x.index_select(2, indices)


def order_scores(
    q: Tensor,
    k: Tensor,
    scale: float,
    grid: Sequence[int],
    text: Sequence[int],
    block: tuple[int, int],
    threshold: float,
) -> OrderScores:
    """Scores of q and k [B, 1, N, D] in every order, means over B.

    Each order takes three passes over the attention matrix, 2·N²·D FLOPs each and one more to normalise the weights
    that are counted; no more than [B, N/bm, N/bn] of it is held.
    """
    sparse, quantization = [], []
    entries = _entries(q.size(2), block, q.device)
    for code in range(len(AXES)):
        indices = permutation_indices(code, grid, text, q.device)
        ordered = reorder(q, indices), reorder(k, indices)
        above = attention_block_scores(*ordered, block=block, scale=scale, stat="count_above", threshold=threshold)
        small = above <= (1.0 - SPARSE_SHARE) * entries
        sparse.append(small.double().mean())
        incoherence = attention_block_scores(*ordered, block=block, scale=scale, stat="incoherence")
        quantization.append(incoherence.double().mean())
    return OrderScores(torch.stack(sparse).cpu(), torch.stack(quantization).cpu())


def block_mass(q: Tensor, k: Tensor, scale: float, indices: Tensor, block: tuple[int, int]) -> Tensor:
    """[ceil(N/bm), ceil(N/bn)] float64: the share of attention that the mean query of a row of blocks gives each block.

    Mean over the batch; every row sums to 1, the ragged one too.
    """
    sums = attention_block_scores(reorder(q, indices), reorder(k, indices), block=block, scale=scale, stat="sum")
    return sums.double().mean((0, 1)) / queries_in_rows(q.size(2), block, q.device).unsqueeze(1)


def queries_in_rows(num_tokens: int, block: tuple[int, int], device: torch.device) -> Tensor:
    """float64 [ceil(N/bm)]: bm, and what is left for the last row."""
    first = torch.arange(0, num_tokens, block[0], device=device)
    return (num_tokens - first).clamp(max=block[0]).double()


def choose_blocks(mass: Tensor, density: float, forced: Tensor) -> Tensor:
    """bool [Mb, Nb]: the heaviest blocks up to the density.

    ``forced`` [Mb, Nb] blocks and the heaviest one of every row are kept first, so that no query is left without a key;
    they count towards the density and exceed it where they must. Equal masses are taken by lower index first.
    """
    first = forced.clone()
    first.scatter_(1, mass.argmax(1, keepdim=True), True)
    count = max(int(first.sum()), round(density * mass.numel()))
    rank = torch.where(first, torch.inf, mass).flatten()
    order = torch.sort(rank, descending=True, stable=True).indices
    kept = torch.zeros(mass.numel(), dtype=torch.bool, device=mass.device)
    kept[order[:count]] = True
    return kept.view(mass.shape)


def text_blocks(num_tokens: int, text: Sequence[int], block: tuple[int, int]) -> Tensor:
    """bool [Mb, Nb]: rows and columns of blocks that hold text."""
    rows, columns = -(-num_tokens // block[0]), -(-num_tokens // block[1])
    return masks._with_text(torch.zeros(rows, columns, dtype=torch.bool), num_tokens, text, block)


def recall(mass: Tensor, kept: Tensor, num_tokens: int, block: tuple[int, int]) -> float:
    """The share of all attention that the kept blocks hold."""
    queries = queries_in_rows(num_tokens, block, mass.device)
    return float(((mass * kept).sum(1) * queries).sum() / num_tokens)


def _entries(num_tokens: int, block: tuple[int, int], device: torch.device) -> Tensor:
    """float64 [Mb, Nb]: elements of every block, ragged ones with what they have."""
    rows = queries_in_rows(num_tokens, block, device)
    columns = queries_in_rows(num_tokens, (block[1], block[0]), device)
    return rows.unsqueeze(1) * columns


def _normalized(values: Tensor) -> Tensor:
    least, most = values.min(), values.max()
    return (values - least) / (most - least) if most > least else torch.zeros_like(values)
