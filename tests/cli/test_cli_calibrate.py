"""``tokcore calibrate``: samples in, plan, table, pictures and CSV out; memory that does not grow with N squared."""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from toy import Invoke

from tokcore.paro import AttentionSample, ParoPlan, save_sample
from tokcore.testing.structured import planted_attention

GRID = (8, 8, 8)


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    for step in (0, 10):
        q, k, v = planted_attention((2, 4), GRID, (0, 20), dtype=torch.bfloat16, seed=step)
        save_sample(folder / f"{step}.safetensors", AttentionSample(step, "blocks.0/attn", q, k, v))
    return folder


def test_samples_become_a_plan(invoke: Invoke, samples: Path, tmp_path: Path) -> None:
    plan_file, table, pictures = tmp_path / "plan.safetensors", tmp_path / "heads.csv", tmp_path / "pictures"
    done = invoke(
        "calibrate", samples, "--grid", "8,8,8", "--text", "0,20", "--density", "0.5", "--out", plan_file,
        "--csv", table, "--pictures", pictures,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    plan = ParoPlan.load(plan_file, layers=["blocks.0/attn"], num_heads=2, grid=GRID, text=(0, 20))
    assert plan.steps == (0, 10)
    assert "8x8x8 tokens and 20 of text" in done.output
    assert "peak memory" in done.output
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["step"], row["head"]) for row in rows] == [("0", "0"), ("0", "1"), ("10", "0"), ("10", "1")]
    for row, recall in zip(rows, plan.recall.flatten().tolist(), strict=True):
        assert float(row["recall"]) == pytest.approx(recall)
        assert f"{recall:.1%}" in done.output
        assert row["order"] in done.output
    assert float(rows[3]["sparse HWF"]) == pytest.approx(plan.sparse_score[1, 0, 1, 2].item())
    drawn = sorted(path.name for path in pictures.iterdir())
    assert len(drawn) == 8
    assert "step0-blocks.0_attn-head0_dark.png" in drawn
    light, dark = (Image.open(pictures / f"step0-blocks.0_attn-head0_{name}.png") for name in ("light", "dark"))
    assert light.size == dark.size
    assert len(light.convert("RGB").getcolors(1 << 24) or []) > 20, "a picture of something"
    assert light.convert("L").resize((1, 1)).getpixel((0, 0)) > dark.convert("L").resize((1, 1)).getpixel((0, 0))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--grid", "8,8"], "--grid: expected 3 integers with commas between them, got '8,8'"),
        (["--grid", "8,8,9", "--text", "0,20"], "expected 596 tokens (the grid and its text), got 532 in step 0"),
        (
            ["--grid", "8,8,8", "--text", "0,20", "--density", "2"],
            "argument 'density': expected a value in (0, 1], got",
        ),
        (["--grid", "8,8,8", "--text", "0,20", "--block", "8,8"], "argument 'block': expected (64, 64)"),
    ],
)
def test_errors_are_one_line(invoke: Invoke, samples: Path, words: list[str], text: str, tmp_path: Path) -> None:
    done = invoke("calibrate", samples, *words, "--out", tmp_path / "plan.safetensors")
    assert done.exit_code == 2
    assert text in done.output
    assert done.output.strip().count("\n") == 0
    assert not (tmp_path / "plan.safetensors").exists()


def test_files_that_are_missing_or_broken_are_one_line(invoke: Invoke, tmp_path: Path) -> None:
    out = ("--grid", "8,8,8", "--out", tmp_path / "plan.safetensors")
    assert "no such file or folder" in invoke("calibrate", tmp_path / "none", *out).output
    (tmp_path / "broken.safetensors").write_bytes(b"12345")
    done = invoke("calibrate", tmp_path / "broken.safetensors", *out)
    assert done.exit_code == 2
    assert "expected a whole safetensors file, got broken.safetensors of 5 bytes" in done.output


PEAK = """
import sys, torch
from pathlib import Path
from tokcore.paro import calibrate_paro, load_samples
from tokcore.testing.memory import peak_of
torch.set_num_threads(2)
folder = Path(sys.argv[1])
calibrate_paro(load_samples(folder / "small.safetensors"), (2, 8, 8))
for name, grid in (("half", (16, 16, 16)), ("whole", (32, 16, 16))):
    samples = load_samples(folder / f"{name}.safetensors")
    print(peak_of(lambda: calibrate_paro(samples, grid)).peak)
"""


def test_memory_grows_with_the_tokens_and_not_with_their_square(tmp_path: Path) -> None:
    sizes = {"small": 128, "half": 4096, "whole": 8192}
    for name, size in sizes.items():
        q, k, v = torch.randn(3, 1, 1, size, 64).bfloat16()
        save_sample(tmp_path / f"{name}.safetensors", AttentionSample(0, "a", q, k, v))
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("this kernel does not let a process reset its peak memory (/proc/self/clear_refs)")
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path)], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    half, whole = (int(line) for line in done.stdout.split())
    bytes_of_tokens = 8192 * 64 * 2
    # q, k and v, as read and reordered; two outputs, in fp32 too; the kernels' scratch; scores of (N/64)² blocks.
    assert whole < 50 * bytes_of_tokens
    assert whole < 8192**2, "less than a byte for every element of the attention matrix"
    assert whole < 2.5 * half + (8 << 20)
