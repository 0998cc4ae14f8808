"""``attention_block_scores``: statistics of attention weights per block, without the attention matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from tokcore import _library as _library  # the operators must exist before their fakes are registered
from tokcore.block_mask import check_block
from tokcore.ops import _attention_checks as attention
from tokcore.ops import _checks as checks

STATISTICS = ("sum", "max", "count_above", "incoherence")


@torch.library.register_fake("tokcore::attention_block_scores")  # type: ignore[untyped-decorator]
def _fake(
    q: Tensor,
    k: Tensor,
    block_m: int,
    block_n: int,
    *,
    scale: float,
    causal: bool = False,
    stat: str = "sum",
    threshold: float = 0.001,
) -> Tensor:
    require = checks.fake_require("attention_block_scores")
    attention.check_tensors(require, q, k)
    attention.check_devices(require, q, {"k": k})
    attention.check_shapes(require, q, k)
    attention.check_block_sizes(require, block_m, block_n)
    attention.check_range(require, q, scale)
    _check_statistic(require, stat, threshold)
    attention.check_strides(require, {"q": q, "k": k})
    rows, columns = -(-q.size(2) // block_m), -(-k.size(2) // block_n)
    return q.new_empty((q.size(0), q.size(1), rows, columns), dtype=torch.float32)


def _check_statistic(require: checks.Require, stat: str, threshold: float) -> None:
    checks.check_choice(require, "stat", stat, STATISTICS)
    require(0.0 < threshold < 1.0, "threshold", lambda: "a value in (0, 1)", lambda: f"{threshold}")


def attention_block_scores(
    q: Tensor,
    k: Tensor,
    *,
    block: tuple[int, int] = (64, 64),
    scale: float | None = None,
    causal: bool = False,
    stat: str = "sum",
    threshold: float = 1e-3,
) -> Tensor:
    """What softmax(scale·q·kᵀ) holds in each of its blocks, at the memory of the blocks.

    For calibration and for masks that depend on the input, on sequences whose attention matrix does not fit: hand the
    scores to :func:`tokcore.masks.top_k` or :func:`tokcore.masks.mass_threshold`.

    Args:
        q: [B, H, M, D], float32, bfloat16 or float16; D in [32, 256]. A last dimension that is not dense is copied.
        k: [B, Hkv, N, D], dtype of ``q``; H a multiple of Hkv.
        block: (bm, bn): (64, 64), (128, 64), (64, 128) or (128, 128).
        scale: positive factor of the scores; None is 1/sqrt(D).
        causal: element (m, n) counts where n <= m + N - M; the weights of the others are 0.
        stat: ``"sum"`` of the weights p of a block; ``"max"``, the greatest; ``"count_above"``, how many exceed
            ``threshold``; ``"incoherence"``, the greatest over the mean of those that count, 0 where none does.
        threshold: in (0, 1).

    Returns:
        [B, H, ceil(M/bm), ceil(N/bn)] float32, not differentiable. Rows without any element that counts add nothing. A
        NaN in a query's scores makes its row of blocks NaN, but for ``count_above``, where nothing exceeds anything.

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong device, rank, shape or value. NotImplementedError: a
            device without kernels.

    2·M·N·D FLOPs a head, twice that for ``count_above``. Memory beyond the result is linear in N: 256 bytes a block of
    keys and thread, on CUDA 1 KiB a block of keys for each 128 queries that run at a time. Results are bitwise
    repeatable whatever the number of threads or multiprocessors.
    Source: the sparse and quantization scores of PAROAttention (arXiv 2506.16054).
    """
    require = checks.wrapper_require("attention_block_scores")
    chosen = attention.check_public(require, q, k, None, scale)
    check_block(require, block)
    attention.check_flag(require, "causal", causal)
    checks.check_positive(require, "threshold", threshold, optional=False)
    _check_statistic(require, stat, threshold)
    with torch.no_grad():
        scores: Tensor = torch.ops.tokcore.attention_block_scores(
            attention.dense_heads(q.detach()),
            attention.dense_heads(k.detach()),
            *block,
            scale=chosen,
            causal=causal,
            stat=stat,
            threshold=float(threshold),
        )
    return scores
