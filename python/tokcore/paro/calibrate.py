"""``calibrate_paro``: from samples of q and k to a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokcore.block_mask import BlockMask, check_block
from tokcore.ops import _checks as checks
from tokcore.ops.block_sparse_attention import block_sparse_attention
from tokcore.paro import scores
from tokcore.paro.plan import DENSE, EMPTY, SPARSE, ParoPlan
from tokcore.paro.plan_file import tensor_bytes
from tokcore.paro.samples import Sample, check_finite
from tokcore.permutation import check_grid, permutation_indices


@dataclass(frozen=True)
class _Empty:
    """A head of which nothing is computed but the blocks that hold text."""

    dense: Tensor  # bool [Mb, Nb]
    recall: float


@dataclass(frozen=True)
class OutputQuality:
    """Of a head's output over the samples; all NaN where one has no v."""

    psnr: float  # of the sparse output
    psnr_if_empty: float
    rms: float  # root mean square of the dense output


@dataclass(frozen=True)
class HeadResult:
    """What calibration found for one head."""

    code: int
    dense: Tensor  # bool [Mb, Nb]
    kind: int
    recall: float
    scores: scores.OrderScores
    quality: OutputQuality
    empty: _Empty  # what it is if it counts as empty


@dataclass(frozen=True)
class _Options:
    grid: tuple[int, int, int]
    text: tuple[int, int]
    block: tuple[int, int]
    density: float
    alpha: float
    threshold: float
    min_recall: float
    rank: str


def calibrate_paro(
    samples: Sequence[Sample],
    grid: Sequence[int],
    text: Sequence[int] = (0, 0),
    density: float = 0.3,
    *,
    alpha: float = 0.5,
    rank: str = "scores",
    block: tuple[int, int] = (64, 64),
    threshold: float = 1e-3,
    share_from: float = 0.5,
    min_recall: float = 0.0,
    empty_below: float = 1e-4,
    progress: Callable[[str], None] | None = None,
) -> ParoPlan:
    """Choose for every head an order of its tokens and the blocks of attention to keep.

    For each of the six orders, P = softmax(scale·q·kᵀ) is looked at in blocks: its sparse score is the share of blocks
    in which at least 90 % of the entries are below ``threshold``, its quantization score the mean over blocks of
    max|P| / mean|P|. The order of least α·(1 − norm(sparse)) + (1 − α)·norm(quantization) wins, norm mapping the six
    values onto [0, 1]. In it, the blocks that hold most attention are kept up to ``density``; text and the best block
    of every row are kept first. All means are over the prompts and steps of a step group.

    Args:
        samples: at least one for every layer and step group, such as :class:`tokcore.paro.AttentionSample` or
            what :func:`tokcore.paro.load_samples` returns; each with B prompts. q and k after RoPE, in reading order.
        grid: (F, H, W) tokens.
        text: tokens before and after the grid; N = text[0] + F·H·W + text[1].
        density: share of blocks to keep, in (0, 1].
        alpha: weight of the sparse score, in [0, 1].
        rank: what orders are chosen by: ``"scores"``, as above, or ``"recall"``, the share of attention that a mask of
            ``density`` holds in each (the mean over the samples, each with a mask of its own).
        block: (bm, bn).
        threshold: what counts as a small weight, in (0, 1).
        share_from: the sampled steps from this share on form one group, the earlier ones one each; in [0, 1].
        min_recall: heads whose kept blocks hold less of the attention are dense; in [0, 1], 0 for no such head.
        empty_below: heads whose output is, with v, less than this share of their layer's root mean square are empty, of
            which only blocks with text are computed; in [0, 1), 0 for no such head.
        progress: called with a line for every head that is done.

    Returns:
        :class:`ParoPlan`; its PSNR is NaN where a sample has no v, and no head is empty there.

    Raises:
        TypeError: a wrong type. ValueError: values out of range, samples that do not fit one another or the grid, a
            layer without a sample in some step group, values that are not finite.

    One head of one sample is held at a time, six orders one after the other: beyond it, memory grows with
    N·D + (N/bm)·(N/bn) and with the masks, never with N². A head takes 6·3 + 1 passes over the attention matrix of
    2·N²·D FLOPs, 6 more by recall, and three attentions with v. Repeatable bit for bit whatever the thread count.
    Source: PAROAttention (arXiv 2506.16054), which leaves α open.
    """
    require = checks.wrapper_require("calibrate_paro")
    options = _checked(require, grid, text, density, alpha, rank, block, threshold, min_recall)
    checks._number(require, "share_from", share_from)
    require(0.0 <= share_from <= 1.0, "share_from", lambda: "a value in [0, 1]", lambda: f"{share_from}")
    checks.check_interval(require, "empty_below", empty_below, 1.0)
    num_tokens = check_grid(require, grid, text)
    heads, kv_heads = _check_samples(require, samples, num_tokens)
    sharing = heads // kv_heads
    layers = tuple(dict.fromkeys(sample.layer for sample in samples))
    groups = step_groups({sample.step for sample in samples}, share_from)
    results: list[list[list[HeadResult]]] = []
    for group in groups:
        of_layers = []
        for layer in layers:
            chosen = [sample for sample in samples if sample.layer == layer and sample.step in group]
            require(
                bool(chosen), "samples", lambda: "samples of every layer in every group of steps",
                lambda layer=layer, group=group: f"none of layer {layer} at step {', '.join(map(str, group))}",  # type: ignore[misc]
            )  # fmt: skip
            found: list[HeadResult] = []
            for first in range(0, heads, sharing):
                of_heads = [_order_scores(require, chosen, head, options) for head in range(first, first + sharing)]
                code = scores.mean_scores(of_heads).best(alpha)
                for head, order in enumerate(of_heads, first):
                    found.append(_calibrate_head(chosen, head, code, order, options))
                    if progress is not None:
                        progress(f"step {group[0]}, layer {layer}, head {head + 1} of {heads}")
            of_layers.append(_without_empty(found, empty_below))
        results.append(of_layers)
    return _assemble(results, groups, layers, options)


def step_groups(steps: set[int], share_from: float) -> list[tuple[int, ...]]:
    """The sampled steps before ``share_from`` of their number one by one, the others together."""
    ordered = sorted(steps)
    alone = min(math.floor(share_from * len(ordered)), len(ordered) - 1)
    return [*((step,) for step in ordered[:alone]), tuple(ordered[alone:])]


def _checked(
    require: checks.Require,
    grid: Sequence[int],
    text: Sequence[int],
    density: float,
    alpha: float,
    rank: str,
    block: tuple[int, int],
    threshold: float,
    min_recall: float,
) -> _Options:
    check_grid(require, grid, text)
    checks.check_positive(require, "density", density, optional=False)
    require(density <= 1.0, "density", lambda: "a value in (0, 1]", lambda: f"{density}")
    for name, value in {"alpha": alpha, "min_recall": min_recall}.items():
        checks._number(require, name, value)
        require(0.0 <= value <= 1.0, name, lambda: "a value in [0, 1]", lambda value=value: f"{value}")  # type: ignore[misc]
    checks.check_choice(require, "rank", rank, scores.RANKS)
    check_block(require, block)
    checks.check_positive(require, "threshold", threshold, optional=False)
    require(threshold < 1.0, "threshold", lambda: "a value in (0, 1)", lambda: f"{threshold}")
    F, H, W = grid
    return _Options((F, H, W), (text[0], text[1]), (block[0], block[1]), density, alpha, threshold, min_recall, rank)


def _check_samples(require: checks.Require, samples: Sequence[Sample], num_tokens: int) -> tuple[int, int]:
    require(len(samples) > 0, "samples", lambda: "at least one sample", lambda: "none")
    heads, kv_heads = samples[0].num_heads, samples[0].num_kv_heads
    for sample in samples:
        where = f"step {sample.step}, layer {sample.layer}"
        found = sample.num_tokens
        require(
            found == num_tokens,
            "samples",
            lambda: f"{num_tokens} tokens (the grid and its text)",
            lambda found=found, where=where: f"{found} in {where}",  # type: ignore[misc]
        )
        count, shared = sample.num_heads, sample.num_kv_heads
        require(
            (count, shared) == (heads, kv_heads) and shared > 0,
            "samples",
            lambda: f"{heads} heads on {kv_heads} key heads, those of the first sample, and at least one",
            lambda count=count, shared=shared, where=where: f"{count} on {shared} in {where}",  # type: ignore[misc]
        )
    return heads, kv_heads


@torch.no_grad()
def _order_scores(
    require: checks.Require, samples: Sequence[Sample], head: int, options: _Options
) -> scores.OrderScores:
    """Means over the samples."""
    found = []
    for sample in samples:
        q, k, v = sample.head(head)
        for name, value in {"q": q, "k": k, "v": v}.items():
            if value is not None:
                check_finite(require, name, value, f"step {sample.step}, layer {sample.layer}, head {head}")
        tensors = (q, k, sample.scale, options.grid, options.text, options.block)
        order = scores.order_scores(*tensors, options.threshold)
        if options.rank == "recall":
            order = replace(order, recall=scores.order_recall(*tensors, options.density))
        found.append(order)
    return scores.mean_scores(found)


@torch.no_grad()
def _calibrate_head(
    samples: Sequence[Sample], head: int, code: int, order: scores.OrderScores, options: _Options
) -> HeadResult:
    grid, text, block = options.grid, options.text, options.block
    num_tokens = samples[0].num_tokens
    indices = permutation_indices(code, grid, text)
    with_text = scores.text_blocks(num_tokens, text, block)
    masses = []
    for sample in samples:
        q, k, _ = sample.head(head)
        masses.append(scores.block_mass(q, k, sample.scale, indices.to(q.device), block).cpu())
    mass = torch.stack(masses).mean(0)
    dense = scores.choose_blocks(mass, options.density, with_text)
    kept = scores.recall(mass, dense, num_tokens, block)
    kind = SPARSE
    if kept < options.min_recall or bool(dense.all()):
        dense, kept, kind = torch.ones_like(dense), 1.0, DENSE
    quality = _output_quality(samples, head, indices, (dense, with_text), block)
    empty = _Empty(with_text, scores.recall(mass, with_text, num_tokens, block))
    return HeadResult(code, dense, kind, kept, order, quality, empty)


def _output_quality(
    samples: Sequence[Sample], head: int, indices: Tensor, masks: tuple[Tensor, Tensor], block: tuple[int, int]
) -> OutputQuality:
    """Of the head's mask and of the empty head's. PSNRs are from the means over samples of error² / range², range
    being the dense output's greatest less its least value."""
    shape = (indices.numel(), indices.numel())
    errors, square = [0.0, 0.0], 0.0
    for sample in samples:
        q, k, v = sample.head(head)
        if v is None:
            return OutputQuality(math.nan, math.nan, math.nan)
        q, k, v = (scores.reorder(x, indices.to(x.device)) for x in (q, k, v))
        everything = BlockMask.full(shape, block, q.device)
        whole = block_sparse_attention(q, k, v, everything, scale=sample.scale).float()
        spread = float(whole.max() - whole.min())
        for number, dense in enumerate(masks):
            mask = BlockMask.from_dense(dense.to(q.device), block, shape=shape)
            part = block_sparse_attention(q, k, v, mask, scale=sample.scale).float()
            error = float(part.sub_(whole).square_().mean(dtype=torch.float64))
            errors[number] += _relative(error, spread) / len(samples)
        square += float(whole.square_().mean(dtype=torch.float64)) / len(samples)
    return OutputQuality(_decibels(errors[0]), _decibels(errors[1]), math.sqrt(square))


def _relative(error: float, spread: float) -> float:
    """A mean square error over the square of the range of the values; 0 where there is no error."""
    return 0.0 if error == 0.0 else error / spread**2 if spread > 0.0 else math.inf


def _decibels(error: float) -> float:
    return math.inf if error == 0.0 else -10.0 * math.log10(error) if error < math.inf else -math.inf


def _without_empty(found: list[HeadResult], empty_below: float) -> list[HeadResult]:
    """The heads of a layer; those that add next to nothing to its output keep no block."""
    limit = empty_below * math.sqrt(sum(head.quality.rms**2 for head in found) / len(found))
    return [_emptied(head) if head.quality.rms < limit else head for head in found]


def _emptied(head: HeadResult) -> HeadResult:
    quality = replace(head.quality, psnr=head.quality.psnr_if_empty)
    return replace(head, dense=head.empty.dense, kind=EMPTY, recall=head.empty.recall, quality=quality)


def _assemble(
    results: list[list[list[HeadResult]]],
    groups: Sequence[tuple[int, ...]],
    layers: tuple[str, ...],
    options: _Options,
) -> ParoPlan:
    import tokcore

    shape = (math.prod(options.grid) + sum(options.text),) * 2
    known: dict[bytes, int] = {}
    distinct: list[Tensor] = []

    def index_of(head: HeadResult) -> int:
        bits = BlockMask.from_dense(head.dense, options.block, shape=shape).bits[0, 0]
        key = tensor_bytes(bits.contiguous())
        if key not in known:
            known[key] = len(distinct)
            distinct.append(bits)
        return known[key]

    def table(value: Callable[[HeadResult], object], dtype: torch.dtype) -> Tensor:
        return torch.tensor([[[value(head) for head in layer] for layer in group] for group in results], dtype=dtype)

    index = table(index_of, torch.int32)
    return ParoPlan(
        grid=options.grid,
        text=options.text,
        block=options.block,
        layers=layers,
        steps=tuple(group[0] for group in groups),
        step_counts=torch.tensor([len(group) for group in groups]),
        permutations=table(lambda head: head.code, torch.int32),
        mask_index=index,
        masks=torch.stack(distinct),
        head_class=table(lambda head: head.kind, torch.int32),
        density=table(lambda head: head.dense.double().mean().item(), torch.float32),
        recall=table(lambda head: head.recall, torch.float32),
        psnr=table(lambda head: head.quality.psnr, torch.float32),
        sparse_score=table(lambda head: head.scores.sparse.tolist(), torch.float32),
        quantization_score=table(lambda head: head.scores.quantization.tolist(), torch.float32),
        requested_density=float(options.density),
        alpha=float(options.alpha),
        tokcore_version=tokcore.__version__,
    )
