"""The attention of a video's features, dense, sparse and quantized: outputs, errors, and interleaved times."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import tokcore
from tokcore.block_mask import BlockMask
from tokcore.demo.sparse_attention.features import HEAD_DIM, Features
from tokcore.demo.sparse_attention.video import psnr, to_frames
from tokcore.paro import ParoPlan
from tokcore.testing.timing import Contestant, interleave, paired_ratio, summarize

BASELINE = "torch SDPA, dense"
DENSE = "tokcore, dense"
SPARSE = "sparse, bf16"
ARITHMETIC = {SPARSE: ("bf16", "bf16"), "sparse, INT8": ("int8", "int8"), "sparse, INT8 with INT4 PV": ("int8", "int4")}


@dataclass(frozen=True)
class Variant:
    """One way to compute the attention, and what came of it."""

    name: str
    density: float
    seconds: float
    speedup: float  # over BASELINE, median of rounds
    error: float  # relative L2 distance of the output from dense fp32
    output_psnr: float  # of the same, over the range of the dense output
    video_psnr: float  # of the frames that the heads' mean output shows, against the video without noise
    frames: Tensor  # [F, 3, height, width]
    head_psnr: Sequence[float]  # of each head's output


def calls(features: Features, plan: ParoPlan, layer: str) -> dict[str, Callable[[], Tensor]]:
    """The variants as closures. The dense ones get q and k after RoPE; RoPE is part of the others' calls."""
    size = features.q.size(2)
    everything = BlockMask.full((size, size))
    mask, permutation = plan.mask(0, layer), plan.permutation(0, layer)
    turned = features.rotated_q, features.rotated_k, features.v

    def sparse(qk: str, pv: str) -> Callable[[], Tensor]:
        return lambda: tokcore.paro_attention(
            features.q, features.k, features.v, mask, permutation, plan.grid, text=plan.text, rope=features.rope,
            rope_pairs="half", qk=qk, pv=pv,
        )  # fmt: skip

    return {
        BASELINE: lambda: F.scaled_dot_product_attention(*turned),
        DENSE: lambda: tokcore.block_sparse_attention(*turned, everything),
        **{name: sparse(*arithmetic) for name, arithmetic in ARITHMETIC.items()},
    }


def measure(
    features: Features, plan: ParoPlan, layer: str, clean: Tensor, patch: int, seconds: float, rounds: int
) -> list[Variant]:
    """Run every variant, compare it with dense attention in fp32, and time all of them in turn."""
    attend = calls(features, plan, layer)
    exact = F.scaled_dot_product_attention(features.rotated_q.float(), features.rotated_k.float(), features.v.float())
    outputs = {name: call().float() for name, call in attend.items()}
    contestants = [Contestant(name, [call], paced=False) for name, call in attend.items()]
    samples = interleave(contestants, seconds, min_rounds=rounds)
    variants = []
    for name, output in outputs.items():
        frames = to_frames(output.mean((0, 1)), plan.grid, patch)
        speedup = paired_ratio(samples[BASELINE], samples[name])
        assert speedup is not None
        variants.append(
            Variant(
                name=name,
                density=plan.predicted_density if name in ARITHMETIC else 1.0,
                seconds=summarize(samples[name]).median,
                speedup=speedup,
                error=float((output - exact).norm() / exact.norm()),
                output_psnr=range_psnr(output, exact),
                video_psnr=psnr(frames, clean),
                frames=frames,
                head_psnr=[range_psnr(output[:, h], exact[:, h]) for h in range(output.size(1))],
            )
        )
    return variants


def range_psnr(output: Tensor, exact: Tensor) -> float:
    """PSNR in dB, the peak being the range of ``exact``."""
    error = float((output - exact).square().mean(dtype=torch.float64))
    spread = float(exact.max() - exact.min())
    return math.inf if error == 0 else 10.0 * math.log10(spread**2 / error)


def flops(num_tokens: int, num_heads: int, density: float) -> float:
    """Of the products with the kept blocks."""
    return 4.0 * num_heads * density * num_tokens**2 * HEAD_DIM
