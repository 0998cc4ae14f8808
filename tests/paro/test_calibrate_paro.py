"""Calibration: orders that were planted are found, masks have the density asked for, and figures are what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from paro_support import DENSITY, GRID, NUM_TOKENS, TEXT, sample, small_plan

import tokcore
from tokcore.paro import AttentionSample, ParoPlan, calibrate_paro
from tokcore.paro import scores as scoring
from tokcore.paro.calibrate import step_groups
from tokcore.permutation import permutation_indices
from tokcore.reference.attention_block_scores import attention_block_scores
from tokcore.testing.structured import planted_attention

CODES = (3, 0, 5, 1, 4, 2)
CUBE = (12, 12, 12)


@pytest.fixture(scope="module")
def planted() -> ParoPlan:
    q, k, v = planted_attention(CODES, CUBE, dtype=torch.bfloat16, seed=3)
    return calibrate_paro([AttentionSample(0, "planted", q, k, v)], CUBE, density=0.3)


def test_the_planted_orders_are_found(planted: ParoPlan) -> None:
    assert planted.permutation(0, "planted").tolist() == list(CODES)
    for head, code in enumerate(CODES):
        assert planted.sparse_score[0, 0, head].argmax() == code, "by either score alone"
        assert planted.quantization_score[0, 0, head].argmin() == code


def test_the_planted_orders_are_found_between_text() -> None:
    q, k, v = planted_attention((2, 5), CUBE, (70, 9), dtype=torch.bfloat16, seed=4)
    plan = calibrate_paro([AttentionSample(0, "planted", q, k, v)], CUBE, (70, 9), 0.45)
    assert plan.permutation(0, "planted").tolist() == [2, 5]


def test_of_random_attention_no_order_stands_out(planted: ParoPlan) -> None:
    torch.manual_seed(5)
    q, k, v = torch.randn(3, 1, 2, math.prod(CUBE), 64).bfloat16()
    control = calibrate_paro([AttentionSample(0, "random", q, k, v)], CUBE, density=0.3)

    def spread(values: torch.Tensor) -> torch.Tensor:
        return (values.amax(-1) - values.amin(-1)) / values.mean(-1)

    assert spread(control.quantization_score).max() < 0.05
    assert spread(planted.quantization_score).min() > 0.5
    assert control.recall.max() < 0.35, "the heaviest blocks of noise hold hardly more than their share"
    assert planted.recall.min() > 2 * control.recall.max()
    assert planted.psnr.min() > control.psnr.max() + 6


def test_reordering_keeps_more_attention_than_reading_order() -> None:
    q, k, _ = planted_attention((2,), CUBE, dtype=torch.bfloat16, seed=6)
    forced = torch.zeros(27, 27, dtype=torch.bool)
    held = []
    for code in (0, 2):
        mass = scoring.block_mass(q, k, 0.125, permutation_indices(code, CUBE), (64, 64))
        held.append(scoring.recall(mass, scoring.choose_blocks(mass, 0.3, forced), 1728, (64, 64)))
    assert held[1] > held[0] + 0.2


def test_scores_are_those_of_the_matrix() -> None:
    torch.manual_seed(7)
    grid, text = (3, 5, 9), (4, 6)
    q, k = 3 * torch.randn(2, 1, 145, 32), torch.randn(2, 1, 145, 32)
    found = scoring.order_scores(q, k, 0.2, grid, text, (64, 64), 1e-3)
    for code in range(6):
        indices = permutation_indices(code, grid, text)
        weights = (0.2 * q[:, :, indices].double() @ k[:, :, indices].double().mT).softmax(-1)
        sparse, quantization = [], []
        for rows in weights.split(64, -2):
            for block in rows.split(64, -1):
                sparse.append(((block <= 1e-3).double().mean((-2, -1)) >= 0.9).double().mean())
                quantization.append((block.amax((-2, -1)) / block.mean((-2, -1))).mean())
        assert found.sparse[code] == torch.stack(sparse).mean()
        torch.testing.assert_close(found.quantization[code], torch.stack(quantization).mean(), rtol=1e-4, atol=0)


def test_alpha_weighs_the_scores() -> None:
    found = scoring.OrderScores(
        torch.tensor([0.9, 0.5, 0.7, 0.1, 0.1, 0.1], dtype=torch.float64),
        torch.tensor([30.0, 20.0, 10.0, 50.0, 50.0, 50.0], dtype=torch.float64),
    )
    assert [found.best(alpha) for alpha in (1.0, 0.0, 0.5)] == [0, 2, 2]
    expected = torch.tensor([0.5 * 0.5, 0.25 + 0.125, 0.125, 1.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found.loss(0.5), expected)
    assert scoring.OrderScores(torch.ones(6), torch.ones(6)).best(0.5) == 0


def test_ranked_by_recall_the_order_holds_most() -> None:
    q, k, _ = planted_attention((4, 1), CUBE, dtype=torch.bfloat16, seed=12)
    items = [AttentionSample(0, "a", q, k), AttentionSample(1, "a", 0.5 * q, k)]
    plan = calibrate_paro(items, CUBE, density=0.2, rank="recall", share_from=0.0)
    nothing = scoring.text_blocks(1728, (0, 0), (64, 64))
    for head, code in enumerate(plan.permutation(0, "a").tolist()):
        held = []
        for item in items:
            heads = item.head(head)[:2]
            masses = [scoring.block_mass(*heads, item.scale, permutation_indices(c, CUBE), (64, 64)) for c in range(6)]
            held.append([scoring.recall(m, scoring.choose_blocks(m, 0.2, nothing), 1728, (64, 64)) for m in masses])
        assert torch.tensor(held).mean(0).argmax() == code == (4, 1)[head]


def test_heads_that_share_a_key_head_share_their_order() -> None:
    q, k, _ = planted_attention((3, 3, 5, 1), CUBE, dtype=torch.bfloat16, seed=10)
    apart = calibrate_paro([AttentionSample(0, "a", q, k)], CUBE, density=0.3)
    assert apart.permutation(0, "a").tolist() == [3, 3, 5, 1]
    shared = calibrate_paro([AttentionSample(0, "a", q, k[:, 1:3])], CUBE, density=0.3)
    codes = shared.permutation(0, "a").tolist()
    assert codes[0] == codes[1] == 3
    assert codes[2] == codes[3]
    mean = scoring.mean_scores(
        [scoring.OrderScores(shared.sparse_score[0, 0, h], shared.quantization_score[0, 0, h]) for h in (2, 3)]
    )
    assert codes[2] == mean.best(0.5)
    assert not torch.equal(shared.mask(0, "a").to_dense()[0, 2], shared.mask(0, "a").to_dense()[0, 3])


@pytest.mark.parametrize("density", [0.05, 0.3, 0.77, 1.0])
def test_masks_hold_the_heaviest_blocks_up_to_the_density(density: float) -> None:
    torch.manual_seed(8)
    mass = torch.rand(11, 13).double()
    nothing = torch.zeros(11, 13, dtype=torch.bool)
    kept = scoring.choose_blocks(mass, density, nothing)
    assert kept.sum() == max(11, round(density * 143))
    assert kept.any(1).all(), "every query sees something"
    best = torch.zeros_like(kept).scatter_(1, mass.argmax(1, keepdim=True), True)
    others = mass[kept & ~best]
    assert not (mass[~kept] > (others.min() if others.numel() else math.inf)).any()
    text = scoring.text_blocks(820, (3, 70), (64, 64))
    assert text[0].all()
    assert text[:, -2:].all()
    assert not text[1:-2, 1:-2].any()
    assert scoring.choose_blocks(mass, density, text[:11, :13])[text[:11, :13]].all()


def test_density_recall_and_psnr_are_those_of_the_mask() -> None:
    item = sample(batch=2, heads=4)
    item = AttentionSample(0, "a", item.q, item.k[:, :2], item.v[:, :2] if item.v is not None else None, 0.3)
    plan = calibrate_paro([item], GRID, TEXT, DENSITY)
    mask, codes = plan.mask(0, "a"), plan.permutation(0, "a").tolist()
    assert mask.bits.shape[:2] == (1, 4)
    for head, code in enumerate(codes):
        indices = permutation_indices(code, GRID, TEXT)
        q, k, v = (x[:, :, indices] for x in item.head(head) if x is not None)
        dense = mask.to_dense()[0, head]
        assert plan.density[0, 0, head] == pytest.approx(dense.double().mean().item())
        mass = attention_block_scores(q, k, scale=0.3).mean((0, 1))
        assert plan.recall[0, 0, head] == pytest.approx((mass * dense).sum().item() / NUM_TOKENS, abs=1e-5)
        weights = 0.3 * q.double() @ k.double().mT
        whole = weights.softmax(-1) @ v.double()
        part = weights.masked_fill(~mask.to_elements()[:, head : head + 1], -math.inf).softmax(-1) @ v.double()
        error = (part - whole).square().mean() / (whole.max() - whole.min()) ** 2
        assert plan.psnr[0, 0, head] == pytest.approx(-10 * math.log10(error), abs=1e-3)
    assert plan.predicted_density == pytest.approx(plan.density.mean().item())


def test_the_mean_over_prompts_is_the_mean_over_samples() -> None:
    both = sample(batch=2, seed=9)
    apart = [AttentionSample(0, "a", both.q[i : i + 1], both.k[i : i + 1]) for i in range(2)]
    together = calibrate_paro([AttentionSample(0, "a", both.q, both.k)], GRID, TEXT, DENSITY)
    joined = calibrate_paro(apart, GRID, TEXT, DENSITY)
    assert torch.equal(together.permutations, joined.permutations)
    assert torch.equal(together.masks, joined.masks)
    assert joined.psnr.isnan().all(), "without v nothing is said about the output"


def test_steps_of_the_second_half_share_their_masks() -> None:
    assert step_groups({9, 3, 0, 6}, 0.5) == [(0,), (3,), (6, 9)]
    assert step_groups({0, 1, 2}, 0.5) == [(0,), (1, 2)]
    assert step_groups({5}, 0.5) == [(5,)]
    assert step_groups({1, 2, 3}, 0.0) == [(1, 2, 3)]
    assert step_groups({1, 2, 3}, 1.0) == [(1,), (2,), (3,)]
    plan = small_plan()
    assert plan.steps == (0, 4)
    assert plan.step_counts.tolist() == [1, 2]
    assert [plan.group(step) for step in (0, 3, 4, 7, 8, 50)] == [0, 0, 1, 1, 1, 1]
    assert plan.mask(8, "b").equal(plan.mask(4, "b"))
    assert not plan.mask(0, "b").equal(plan.mask(4, "b"))


def test_equal_masks_are_kept_once() -> None:
    item = sample()
    plan = calibrate_paro([item, replace(item, layer="b"), replace(item, step=1)][:2], GRID, TEXT, DENSITY)
    assert torch.equal(plan.mask_index[:, 0], plan.mask_index[:, 1])
    assert plan.masks.size(0) == plan.mask_index.unique().numel() <= 2
    assert calibrate_paro([item], GRID, TEXT, 1.0).masks.size(0) == 1


def test_classes_of_heads() -> None:
    item = sample(heads=3)
    assert item.v is not None
    item.v[:, 1] *= 1e-6
    plan = calibrate_paro([item], GRID, TEXT, DENSITY, min_recall=0.3)
    assert plan.head_class[0, 0].tolist() == [1, 2, 1]
    text = scoring.text_blocks(NUM_TOKENS, TEXT, (64, 64))
    assert torch.equal(plan.mask(0, "a").to_dense()[0, 1], text), "of an empty head text alone is computed"
    assert plan.density[0, 0, 1] == text.float().mean()
    assert 0 < plan.recall[0, 0, 1] < plan.recall[0, 0, 0]
    alone = AttentionSample(0, "a", *(x[:, :, 5:293] for x in (item.q, item.k, item.v)))
    empty = calibrate_paro([alone], GRID, density=0.5)
    assert empty.head_class[0, 0].tolist() == [1, 2, 1]
    assert empty.mask(0, "a").to_dense()[0, 1].sum() == empty.recall[0, 0, 1] == empty.density[0, 0, 1] == 0
    assert calibrate_paro(
        [item], GRID, TEXT, DENSITY, min_recall=1.0, empty_below=0.0
    ).head_class.unique().tolist() == [0]
    dense = calibrate_paro([item], GRID, TEXT, 1.0)
    assert dense.head_class[0, 0].tolist() == [0, 2, 0]
    assert dense.psnr[0, 0, 0] == math.inf
    assert dense.recall[0, 0, 0] == 1


def test_results_repeat_whatever_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    plans = []
    try:
        for threads in (1, before, 1):
            torch.set_num_threads(threads)
            plans.append(small_plan())
    finally:
        torch.set_num_threads(before)
    for name in ("permutations", "masks", "recall", "psnr", "sparse_score", "quantization_score"):
        assert all(torch.equal(getattr(plans[0], name), getattr(plan, name)) for plan in plans[1:])


def test_a_plan_feeds_the_attention() -> None:
    item, plan = sample(), small_plan()
    indices = permutation_indices(int(plan.permutation(0, "a")[0]), GRID, TEXT)
    q, k, v = (x[:, :, indices] for x in item.head(0) if x is not None)
    head = plan.mask(0, "a")
    mask = tokcore.BlockMask(head.bits[:, :1], head.block, shape=head.shape)
    assert tokcore.block_sparse_attention(q, k, v, mask).shape == q.shape


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"density": 0.0}, ValueError, "argument 'density': expected a finite value > 0, got 0.0"),
        ({"density": 1.5}, ValueError, "argument 'density': expected a value in (0, 1], got 1.5"),
        ({"alpha": -0.1}, ValueError, "argument 'alpha': expected a value in [0, 1], got -0.1"),
        ({"alpha": "half"}, TypeError, "argument 'alpha': expected a number, got str"),
        ({"rank": "best"}, ValueError, "argument 'rank': expected 'scores' or 'recall', got 'best'"),
        ({"min_recall": 2}, ValueError, "argument 'min_recall': expected a value in [0, 1], got 2"),
        ({"threshold": 1.0}, ValueError, "argument 'threshold': expected a value in (0, 1), got 1.0"),
        ({"share_from": 1.1}, ValueError, "argument 'share_from': expected a value in [0, 1], got 1.1"),
        ({"empty_below": 1.0}, ValueError, "argument 'empty_below': expected a value in [0, 1), got 1.0"),
        ({"samples": []}, ValueError, "argument 'samples': expected at least one sample, got none"),
        (
            {"grid": (3, 8, 13)},
            ValueError,
            "argument 'samples': expected 324 tokens (the grid and its text), got 300 in step 0, layer a",
        ),
        (
            {"samples": [sample(), sample(heads=3)]},
            ValueError,
            "argument 'samples': expected 2 heads on 2 key heads, those of the first sample, and at least one, "
            "got 3 on 3 in step 0, layer a",
        ),
        (
            {"samples": [sample(0, "a"), sample(1, "b")]},
            ValueError,
            "argument 'samples': expected samples of every layer in every group of steps, "
            "got none of layer b at step 0",
        ),
    ],
)
def test_errors(options: dict[str, object], error: type[Exception], text: str) -> None:
    arguments = {"samples": [sample()], "grid": GRID, "text": TEXT, **options}
    with pytest.raises(error) as caught:
        calibrate_paro(**arguments)  # type: ignore[arg-type]
    assert str(caught.value) == f"tokcore.calibrate_paro: {text}"


@pytest.mark.parametrize("name", ["q", "k", "v"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(name: str, value: float) -> None:
    item = sample(step=2)
    getattr(item, name)[0, 1, 17, 3] = value
    with pytest.raises(ValueError, match=f"argument '{name}': expected finite values, got 1 others in step 2, layer a"):
        calibrate_paro([item], GRID, TEXT)


def test_block_sizes_other_than_the_supported_are_refused() -> None:
    with pytest.raises(ValueError, match=r"argument 'block': expected \(64, 64\) or .* got \(32, 64\)"):
        calibrate_paro([sample()], GRID, TEXT, block=(32, 64))
