"""Samples of a running model, and their files."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokcore.paro import AttentionSample, calibrate_paro, capture, load_samples, save_sample

TOKENS, TEXT = 24, (0, 0)


class Attention(nn.Module):
    def __init__(self, kind: str = "self") -> None:
        super().__init__()
        self.project = nn.Linear(64, 192)
        self.kind = kind
        self.last: tuple[Tensor, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
        self.last = (q, k, v)
        if self.kind == "causal":
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.kind == "masked":
            mixed = F.scaled_dot_product_attention(q, k, v, torch.ones(TOKENS, TOKENS, dtype=torch.bool))
        elif self.kind == "cross":
            mixed = F.scaled_dot_product_attention(q, k[:, :, :9], v[:, :, :9])
        elif self.kind == "twice":
            mixed = F.scaled_dot_product_attention(query=q, key=k, value=v, scale=0.5)
            mixed = F.scaled_dot_product_attention(q, k, mixed)
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return x + mixed.transpose(1, 2).flatten(2)


class Model(nn.Module):
    def __init__(self, *kinds: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Attention(kind) for kind in kinds)

    def forward(self, x: Tensor, fail: bool = False) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        if fail:
            raise RuntimeError("stopped")
        return x


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, TOKENS, 64, generator=torch.Generator().manual_seed(0))


def test_what_a_model_attends_to_is_written(tmp_path: Path, x: Tensor) -> None:
    model = Model("self", "self")
    plain = model(x)
    kept = []
    with capture(model, tmp_path / "samples") as captured:
        for _ in range(3):
            assert torch.equal(model(x), plain)
            kept.append([layer.last for layer in model.layers])
            x = 2 * x
            plain = Model.forward(model, x)
    samples = load_samples(tmp_path / "samples")
    assert [sample.path for sample in samples] == captured.written
    assert [(sample.step, sample.layer) for sample in samples] == [(s, f"layers.{n}") for s in range(3) for n in (0, 1)]
    for sample, tensors in zip(samples, [tensors for step in kept for tensors in step], strict=True):
        assert (sample.num_heads, sample.num_tokens, sample.scale) == (2, TOKENS, 1 / math.sqrt(32))
        for head in range(2):
            for stored, tensor in zip(sample.head(head), tensors, strict=True):
                assert stored is not None
                assert torch.equal(stored, tensor[:, head : head + 1])
    model(x)
    assert len(captured.written) == 6, "nothing is written once the context is left"
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in model.modules())


def test_calls_that_are_no_samples_are_named(tmp_path: Path, x: Tensor) -> None:
    with capture(Model("causal", "masked", "cross", "twice", "self"), tmp_path, tokens=TOKENS) as captured:
        captured_model = Model("self")
        captured_model(x)  # another model: not this one's
    assert captured.written == []
    model = Model("causal", "masked", "cross", "twice", "self")
    with capture(model, tmp_path) as captured:
        model(x)
    assert captured.skipped == {
        "layers.0": "the attention is causal",
        "layers.1": "the attention is masked",
        "layers.2": "cross-attention of 24 queries and 9 keys",
    }
    samples = load_samples(tmp_path)
    assert [sample.layer for sample in samples] == ["layers.3", "layers.3#1", "layers.4"]
    assert [sample.scale for sample in samples] == pytest.approx([0.5, 32**-0.5, 32**-0.5])


def test_choices(tmp_path: Path, x: Tensor) -> None:
    model = Model("self", "self")
    with capture(
        model, tmp_path / "a", layers="*.1", steps={1}, calls_per_step=2, values=False, tokens=TOKENS
    ) as captured:
        for _ in range(6):
            model(x)
    samples = load_samples(tmp_path / "a")
    assert [(sample.step, sample.layer, sample.has_v) for sample in samples] == [(1, "layers.1", False)] * 2
    with capture(model, tmp_path / "b", tokens=25) as captured:
        model(x)
    assert captured.written == []
    assert captured.skipped["layers.0"] == "24 tokens instead of 25"


def test_a_failing_call_does_not_confuse_the_names(tmp_path: Path, x: Tensor) -> None:
    model = Model("self")
    with capture(model, tmp_path):
        with pytest.raises(RuntimeError, match="stopped"):
            model(x, fail=True)
        model(x)
    assert [(sample.step, sample.layer) for sample in load_samples(tmp_path)] == [(0, "layers.0"), (1, "layers.0")]


def test_a_folder_with_samples_is_not_mixed(tmp_path: Path, x: Tensor) -> None:
    save_sample(tmp_path / "old.safetensors", AttentionSample(0, "a", *torch.randn(3, 1, 2, 8, 32)))
    with (
        pytest.raises(ValueError, match="argument 'folder': expected a folder without samples, got 1 files"),
        capture(Model("self"), tmp_path),
    ):
        pass


def test_a_captured_model_calibrates(tmp_path: Path) -> None:
    model = Model("self", "self")
    with capture(model, tmp_path):
        for step in range(2):
            model((1 + step) * torch.randn(1, 8 * 8 * 4, 64, generator=torch.Generator().manual_seed(1)))
    plan = calibrate_paro(load_samples(tmp_path), (4, 8, 8), density=0.5)
    assert plan.layers == ("layers.0", "layers.1")
    assert plan.permutations.shape == (2, 2, 2)
    assert not plan.psnr.isnan().any()


def test_samples_in_memory_and_in_files_calibrate_alike(tmp_path: Path) -> None:
    q, k, v = torch.randn(2, 4, 128, 32), torch.randn(2, 2, 128, 32), torch.randn(2, 2, 128, 32)
    sample = AttentionSample(3, "0", q.bfloat16(), k.bfloat16(), v.bfloat16(), 0.4)
    save_sample(tmp_path / "one.safetensors", sample)
    (stored,) = load_samples(tmp_path / "one.safetensors")
    assert (stored.step, stored.layer, stored.scale, stored.num_heads) == (3, "0", 0.4, 4)
    plans = [calibrate_paro([item], (2, 8, 8), density=0.75) for item in (sample, stored)]
    assert torch.equal(plans[0].masks, plans[1].masks)
    assert torch.equal(plans[0].psnr, plans[1].psnr)


def test_tensors_that_share_memory_are_written(tmp_path: Path) -> None:
    fused = torch.randn(1, 2, 16, 96)
    for number, tensors in enumerate(((fused[..., :32],) * 3, fused.chunk(3, -1))):
        path = save_sample(tmp_path / f"{number}.safetensors", AttentionSample(0, "a", *tensors))
        stored = load_file(path)
        assert all(torch.equal(stored[name], tensor) for name, tensor in zip("qkv", tensors, strict=True))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"q": torch.randn(2, 8, 32)}, "argument 'q': expected 4 dimensions, got 3"),
        ({"k": torch.randn(1, 2, 9, 32)}, r"argument 'k': expected shape \[1, Hkv, 8, 32\], .* got \[1, 2, 9, 32\]"),
        ({"k": torch.randn(1, 3, 8, 32)}, "argument 'k': expected shape .* Hkv a divisor of 2"),
        ({"v": torch.randn(1, 2, 8, 16)}, r"argument 'v': expected shape \[1, 2, 8, 32\] .* got \[1, 2, 8, 16\]"),
        ({"k": torch.randn(1, 2, 8, 32).half()}, "argument 'k': expected dtype float32, got float16"),
        ({"step": -1}, "argument 'step': expected a value in"),
        ({"layer": ""}, "argument 'layer': expected a printable name, got ''"),
        ({"softmax_scale": 0.0}, "argument 'softmax_scale': expected a finite value > 0 or None, got 0.0"),
    ],
)
def test_samples_that_do_not_fit(change: dict[str, object], text: str) -> None:
    fields = {"step": 0, "layer": "a", **dict(zip("qkv", torch.randn(3, 1, 2, 8, 32), strict=True)), **change}
    with pytest.raises((ValueError, TypeError), match=f"tokcore.AttentionSample: {text}"):
        AttentionSample(**fields)  # type: ignore[arg-type]


def test_files_that_are_no_samples(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        load_samples(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no \*.safetensors in the folder"):
        load_samples(tmp_path)
    path = save_sample(tmp_path / "x.safetensors", AttentionSample(0, "a", *torch.randn(3, 1, 2, 8, 32)))
    data = path.read_bytes()
    tensors = load_file(path)
    metadata = {"format": "tokcore.attention_samples", "version": "1", "step": "0", "layer": "a", "scale": "0.5"}
    path.write_bytes(data[:-9])
    with pytest.raises(ValueError, match=f"a whole safetensors file, got x.safetensors of {len(data) - 9} bytes"):
        load_samples(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + data[8:])
    with pytest.raises(ValueError, match="expected a whole safetensors file"):
        load_samples(path)
    cases: list[tuple[dict[str, Tensor], dict[str, str], str]] = [
        (tensors, {}, "expected a file of format tokcore.attention_samples, got format 'none'"),
        (tensors, {**metadata, "version": "7"}, "expected samples of version 1, got 7 in x.safetensors"),
        ({"q": tensors["q"]}, metadata, "expected tensors q, k and maybe v, got q in x.safetensors"),
        ({**tensors, "k": tensors["k"].double()}, metadata, "expected q, k and v of one dtype"),
        (tensors, {**metadata, "step": "first"}, "expected metadata step"),
        (tensors, {**metadata, "scale": "nan"}, "argument 'scale': expected a finite value > 0, got nan"),
        ({**tensors, "v": tensors["v"][:, :1].contiguous()}, metadata, "argument 'v': expected shape"),
    ]
    for content, fields, text in cases:
        save_file(content, path, fields)
        with pytest.raises((ValueError, TypeError), match=text):
            load_samples(path)
