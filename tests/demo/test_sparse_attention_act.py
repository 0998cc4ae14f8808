"""The act of block-sparse attention, in miniature."""

from __future__ import annotations

import csv
import io
import itertools
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from tokcore.demo import costs, pipeline, run_demo
from tokcore.demo.acts import ACTS
from tokcore.demo.model import Transformer
from tokcore.demo.settings import DemoSettings
from tokcore.demo.sparse_attention import play as act
from tokcore.demo.sparse_attention.features import CONTENT, NUM_HEADS, make_features
from tokcore.demo.sparse_attention.measure import ARITHMETIC, BASELINE, range_psnr
from tokcore.demo.sparse_attention.prefill import DENSE, measure_prefill
from tokcore.demo.sparse_attention.report import Findings, judge
from tokcore.demo.sparse_attention.video import add_noise, film, load_picture, psnr, to_frames, to_patches
from tokcore.paro import ParoPlan
from tokcore.testing.memory import PeakMemory
from tokcore.testing.worker import WorkerError

TINY = act.SparseAttentionSettings(grid=(8, 9, 12), text_tokens=300, seconds=0.0, rounds=2)
PICTURES = [
    f"sparse_attention_{stem}_{theme}.png" for stem in ("heads", "frames", "costs") for theme in ("light", "dark")
]


@pytest.fixture(autouse=True)
def no_peak_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first act's memory takes half a minute to measure, and is no matter here."""

    def refuse(*arguments: object) -> PeakMemory:
        raise WorkerError("not asked for here")

    monkeypatch.setattr(costs, "measure_peak_memory", refuse)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_act_in_the_demo(
    library: Path, settings: DemoSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ACTS[0] is act.play
    monkeypatch.setattr(pipeline, "ACTS", (partial(act.play, settings=TINY),))
    file = io.StringIO()
    console = Console(file=file, width=200)
    run_demo(True, tmp_path, tmp_path / "cache", 0, settings=settings, root=library, console=console)
    report = file.getvalue()
    for name in PICTURES:
        assert (tmp_path / name).stat().st_size > 5_000
        assert name in report
    plan = ParoPlan.load(tmp_path / "sparse_attention_plan.safetensors", num_heads=NUM_HEADS, grid=TINY.grid)
    heads = rows(tmp_path / "sparse_attention_heads.csv")
    assert [float(row["recall"]) for row in heads] == pytest.approx(plan.recall.flatten().tolist())
    variants = {row["attention"]: row for row in rows(tmp_path / "sparse_attention_variants.csv")}
    assert next(iter(variants)) == BASELINE
    assert all(float(variants[name]["density"]) == pytest.approx(plan.predicted_density) for name in ARITHMETIC)
    errors = [float(variants[name]["relative_error"]) for name in ("tokcore, dense", *ARITHMETIC)]
    assert errors[0] < 0.01
    assert errors[1] < errors[3], "fewer bits, more error"
    assert all(row["seconds"] and float(row["seconds"]) > 0 for row in variants.values())
    prefills = rows(tmp_path / "sparse_attention_prefill.csv")
    assert float(prefills[0]["loss"]) == pytest.approx(float(prefills[1]["loss"]), abs=0.01)
    assert float(prefills[2]["density"]) < 1
    assert "predicts each head's PSNR" in report


def test_the_video_is_the_picture_seen_by_a_camera() -> None:
    picture = load_picture()
    assert picture.shape == (3, 512, 512)
    assert picture.min() >= 0
    assert picture.max() == 1
    frames = film(picture, (5, 6, 8), 8)
    assert frames.shape == (5, 3, 48, 64)
    assert all((a - b).abs().mean() > 0.01 for a, b in itertools.pairwise(frames)), "it moves"
    assert frames.std() > 0.1
    noisy = add_noise(frames, 0.1, 3)
    assert torch.equal(noisy, add_noise(frames, 0.1, 3))
    assert (noisy - frames).std() == pytest.approx(0.1, rel=0.02)


def test_patches_are_the_frames_in_another_basis() -> None:
    frames = torch.rand(2, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    patches = to_patches(frames, 8)
    assert patches.shape == (2 * 3 * 4, 192)
    assert patches.norm() == pytest.approx(frames.norm().item(), rel=1e-5)
    torch.testing.assert_close(to_frames(patches, (2, 3, 4), 8), frames, rtol=0, atol=1e-5)
    flat = to_patches(torch.full((1, 3, 8, 8), 0.5), 8)[0]
    assert flat[0] == pytest.approx(0.5 * 8 * math.sqrt(3), rel=1e-5), "the first coefficient is the brightness"
    assert flat[1:].abs().max() < 1e-5


def test_attention_of_the_features_is_non_local_means() -> None:
    """Without the positions, the weights are exp(-|a - b|²/h²) up to a factor for each query."""
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(2 * 3 * 4, 192, generator=generator)
    features = make_features(patches, (2, 3, 4), sigma=0.8, softness=4.0)
    scores = (features.q.double() @ features.k.double().mT)[0] / 8.0
    h2 = 4.0 * 0.8**2 * math.sqrt(CONTENT)
    expected = -(torch.cdist(patches[:, :CONTENT].double(), patches[:, :CONTENT].double()) ** 2) / h2
    for head in range(NUM_HEADS):
        difference = scores[head] - expected
        torch.testing.assert_close(difference - difference[:, :1], torch.zeros_like(difference), rtol=0, atol=0.2)
    assert torch.equal(features.v[0, 2], patches[:, :64].bfloat16())
    first, second = features.q.float().chunk(2, -1)
    cos, sin = features.rope
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
    torch.testing.assert_close(features.rotated_q.float(), turned, rtol=1e-2, atol=1e-2)


def test_dense_attention_takes_noise_away() -> None:
    grid = (8, 9, 12)
    clean = film(load_picture(), grid, 8)
    noisy = add_noise(clean, 0.15, 0)
    features = make_features(to_patches(noisy, 8), grid, 0.15, 16.0)
    out = F.scaled_dot_product_attention(features.rotated_q, features.rotated_k, features.v)
    assert psnr(to_frames(out.float().mean((0, 1)), grid, 8), clean) > psnr(noisy, clean) + 4


def test_psnr() -> None:
    assert psnr(torch.full((4,), 0.5), torch.full((4,), 0.6)) == pytest.approx(20.0, abs=1e-4)
    assert range_psnr(torch.tensor([0.0, 2.0]), torch.tensor([0.0, 2.0])) == math.inf
    assert range_psnr(torch.tensor([0.1, 2.1]), torch.tensor([0.0, 2.0])) == pytest.approx(
        20 * math.log10(20), abs=1e-3
    )


def test_prefill_under_a_mask_of_everything_is_dense(settings: DemoSettings) -> None:
    model = Transformer(settings.model)
    tokens = torch.randint(400, (201,), generator=torch.Generator().manual_seed(2))
    results = {result.name: result for result in measure_prefill(model, tokens, 500, 0.0, 1)}
    assert set(results) == {DENSE, "tokcore, dense", "window of 500 and a sink", "vertical-slash"}
    for name in ("tokcore, dense", "window of 500 and a sink"):
        assert results[name].density == 1.0
        assert results[name].loss == pytest.approx(results[DENSE].loss, abs=0.01)


def test_claims_can_fail() -> None:
    class Plan:
        recall = torch.tensor([[[0.5]]])
        psnr = torch.tensor([[[30.0]]])

    class Variant:
        def __init__(self, name: str, video_psnr: float) -> None:
            self.name, self.video_psnr, self.head_psnr = name, video_psnr, [28.0]

    variants = [Variant(name, 25.0) for name in (BASELINE, *list(ARITHMETIC)[:2])]
    variants.append(Variant(list(ARITHMETIC)[2], 23.0))
    findings = Findings(Plan(), 0.6, 17.0, variants, [], 1)  # type: ignore[arg-type]
    assert [claim.passed for claim in judge(findings)] == [False, False, True, True, False]
