"""The act from a photograph to its report."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tokcore.demo.act import ActContext, ActResult
from tokcore.demo.sparse_attention.features import NUM_HEADS, Features, make_features
from tokcore.demo.sparse_attention.measure import measure
from tokcore.demo.sparse_attention.pictures import plot_costs, plot_frames
from tokcore.demo.sparse_attention.prefill import measure_prefill
from tokcore.demo.sparse_attention.report import Findings, judge, report, write_tables
from tokcore.demo.sparse_attention.video import add_noise, film, load_picture, psnr, to_patches
from tokcore.demo.tokenizer import encode_stream
from tokcore.paro import AttentionSample, calibrate_paro, scores
from tokcore.paro.pictures import draw_heads, head_picture
from tokcore.permutation import permutation_indices

LAYER = "video"
BLOCK = (64, 64)


@dataclass(frozen=True)
class SparseAttentionSettings:
    """Sizes of the act."""

    grid: tuple[int, int, int] = (16, 20, 28)
    patch: int = 8
    sigma: float = 0.15  # of the noise; pixels are in [0, 1]
    softness: float = 12.0  # of the comparison of patches
    density: float = 0.3
    text_tokens: int = 4096  # of the language model's prefill, at most
    seconds: float = 8.0  # of each interleaved timing
    rounds: int = 7


FULL = SparseAttentionSettings()
QUICK = SparseAttentionSettings(grid=(12, 16, 24), text_tokens=2048, seconds=3.0, rounds=5)


def play(context: ActContext, settings: SparseAttentionSettings | None = None) -> ActResult:
    """Play the act: calibrate on a video's features, attend in five ways, read a long text under block masks."""
    settings = settings or (QUICK if context.quick else FULL)
    progress, grid = context.progress, settings.grid
    clean = film(load_picture(), grid, settings.patch)
    noisy = add_noise(clean, settings.sigma, context.settings.seed)
    features = make_features(to_patches(noisy, settings.patch), grid, settings.sigma, settings.softness)
    progress.say(
        f"act 2: block-sparse attention; a photograph becomes a video of {grid[0]}x{grid[1]}x{grid[2]} = "
        f"{features.q.size(2)} patches, with noise"
    )
    sample = AttentionSample(0, LAYER, features.rotated_q, features.rotated_k, features.v)
    with progress.stage("calibration", NUM_HEADS) as stage:
        plan = calibrate_paro([sample], grid, density=settings.density, rank="recall", progress=stage.advance)
    progress.say("attention of the video: dense, sparse, sparse in 8 and 4 bits ...")
    variants = measure(features, plan, LAYER, clean, settings.patch, settings.seconds, settings.rounds)
    text = encode_stream(context.tokenizer, [context.corpus.held_out.text])[: settings.text_tokens + 1]
    progress.say(f"prefill of the language model with {text.numel() - 1} tokens under block masks ...")
    prefills = measure_prefill(context.model, text, context.settings.seq_len, settings.seconds, settings.rounds)
    findings = Findings(
        plan=plan,
        reading_recall=reading_order_recall(features, settings),
        noisy_psnr=psnr(noisy, clean),
        variants=variants,
        prefills=prefills,
        num_text_tokens=text.numel() - 1,
    )
    claims = judge(findings)
    shown = [head_picture(plan, sample, head) for head in range(NUM_HEADS)]
    pictures = [
        *draw_heads(shown, context.out, "sparse_attention_heads", "Attention of a video, before and after reordering"),
        *plot_frames(clean, noisy, [variants[0], *variants[2:]], context.out),
        *plot_costs(variants, prefills, context.out),
    ]
    return ActResult(
        passed=all(claim.passed for claim in claims),
        report=report(findings, claims),
        pictures=pictures,
        data=[*write_tables(context.out, findings), plan.save(context.out / "sparse_attention_plan.safetensors")],
    )


def reading_order_recall(features: Features, settings: SparseAttentionSettings) -> float:
    """Mean over the heads of what masks of the same density hold where nothing is reordered."""
    size = features.q.size(2)
    indices = permutation_indices(0, settings.grid)
    nothing = scores.text_blocks(size, (0, 0), BLOCK)
    held = []
    for head in range(NUM_HEADS):
        q, k = (x[:, head : head + 1] for x in (features.rotated_q, features.rotated_k))
        mass = scores.block_mass(q, k, q.size(3) ** -0.5, indices, BLOCK)
        held.append(scores.recall(mass, scores.choose_blocks(mass, settings.density, nothing), size, BLOCK))
    return float(torch.tensor(held).mean())
