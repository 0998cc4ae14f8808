"""The file of a plan: what is written comes back, and nothing else is believed."""

from __future__ import annotations

import dataclasses
import json
import struct
from pathlib import Path

import pytest
import torch
from paro_support import GRID, TEXT, small_plan
from safetensors.torch import load_file, save_file

from tokcore.paro import ParoPlan
from tokcore.paro.plan_file import TENSORS, _checksum


@pytest.fixture(scope="module")
def plan() -> ParoPlan:
    return small_plan()


@pytest.fixture
def path(plan: ParoPlan, tmp_path: Path) -> Path:
    return plan.save(tmp_path / "plan.safetensors")


def content(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return load_file(path), json.loads(data[8 : 8 + length])["__metadata__"]


def rewrite(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str], *, checksum: bool = True) -> None:
    if checksum and set(tensors) == set(TENSORS):
        metadata["checksum"] = _checksum(metadata["plan"], tensors)
    save_file(tensors, path, metadata)


def test_a_plan_comes_back(plan: ParoPlan, path: Path) -> None:
    loaded = ParoPlan.load(path, layers=("a", "b"), num_heads=2, grid=GRID, text=TEXT)
    for field in dataclasses.fields(ParoPlan):
        mine, theirs = getattr(plan, field.name), getattr(loaded, field.name)
        if isinstance(mine, torch.Tensor):
            assert mine.dtype == theirs.dtype == TENSORS[field.name]
            assert torch.equal(mine, theirs)
        else:
            assert mine == theirs
    assert loaded.mask(5, "b").equal(plan.mask(5, "b"))
    assert "heads=2" in repr(loaded)


def test_saving_is_repeatable(plan: ParoPlan, path: Path, tmp_path: Path) -> None:
    assert content(plan.save(tmp_path / "again.safetensors"))[1] == content(path)[1]


@pytest.mark.parametrize("kept", [0, 5, 100, -1, -4000])
def test_truncated_files_are_refused(path: Path, kept: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:kept])
    with pytest.raises(ValueError, match=f"a whole safetensors file, got plan.safetensors of {len(data[:kept])}"):
        ParoPlan.load(path)


def test_every_corrupt_byte_is_noticed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    generator = torch.Generator().manual_seed(11)
    for position in torch.randint(len(data), (60,), generator=generator).tolist():
        damaged = bytearray(data)
        damaged[position] ^= 0x11
        path.write_bytes(damaged)
        with pytest.raises((ValueError, TypeError), match=r"tokcore\.ParoPlan\.load: argument"):
            ParoPlan.load(path)


def test_files_that_are_not_plans(tmp_path: Path, path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        ParoPlan.load(tmp_path / "none.safetensors")
    save_file({"q": torch.ones(2)}, path)
    with pytest.raises(ValueError, match=r"expected format tokcore\.paro_plan, got 'none' in plan\.safetensors"):
        ParoPlan.load(path)
    path.write_text("import os; os.system('true')")
    with pytest.raises(ValueError, match="expected a whole safetensors file"):
        ParoPlan.load(path)


def test_other_versions_are_refused(path: Path) -> None:
    tensors, metadata = content(path)
    rewrite(path, tensors, {**metadata, "version": "2"})
    with pytest.raises(ValueError, match=r"expected a plan of version 1, got 2 in plan\.safetensors"):
        ParoPlan.load(path)


def test_missing_and_strange_tensors_are_refused(path: Path) -> None:
    tensors, metadata = content(path)
    rewrite(path, {**{k: v for k, v in tensors.items() if k != "masks"}, "code": torch.ones(1)}, metadata)
    with pytest.raises(ValueError, match=r"expected the 10 tensors of a plan, got .* missing or too many: code, masks"):
        ParoPlan.load(path)


@pytest.mark.parametrize(
    ("name", "change", "text"),
    [
        ("permutations", lambda x: x + 6, r"argument 'permutations': expected values in \[0, 5\], got"),
        ("permutations", lambda x: x.long(), "argument 'permutations': expected dtype int32, got int64"),
        ("mask_index", lambda x: x - 1, r"argument 'mask_index': expected values in \[0, \d+\], got values in \[-1"),
        ("head_class", lambda x: x + 3, r"argument 'head_class': expected values in \[0, 2\], got values in \[\d, 4\]"),
        (
            "density",
            lambda x: x * float("nan"),
            r"argument 'density': expected values in \[0, 1\], got values in \[nan",
        ),
        ("masks", lambda x: x[:, :-1], r"argument 'masks': expected shape \[\d+, 5, 1\], got \[\d+, 4, 1\]"),
        ("recall", lambda x: x[:1], r"argument 'recall': expected shape \[2, 2, 2\], got \[1, 2, 2\]"),
    ],
)
def test_tensors_out_of_range_are_refused(path: Path, name: str, change: object, text: str) -> None:
    tensors, metadata = content(path)
    assert callable(change)
    tensors[name] = change(tensors[name]).contiguous()
    rewrite(path, tensors, metadata)
    with pytest.raises((ValueError, TypeError), match=text):
        ParoPlan.load(path)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [
        ("grid", [3, 6], r"argument 'grid': expected \(F, H, W\), three ints, got \[3, 6\]"),
        ("grid", [3, 8, 80], "argument 'masks': expected shape"),
        ("text", [-1, 7], "argument 'text'"),
        ("block", [32, 32], r"argument 'block': expected .* got \[32, 32\]"),
        ("steps", [4, 0], r"argument 'steps': expected steps that rise from 0 or more, got \(4, 0\)"),
        ("steps", ["0", "4"], "argument 'steps': expected a list of int"),
        ("layers", ["a", "a"], "argument 'layers': expected one or more distinct names"),
        ("alpha", "0.5", "argument 'alpha': expected a number, got str"),
        ("tokcore_version", 1, "argument 'tokcore_version': expected a str, got int"),
    ],
)
def test_fields_out_of_range_are_refused(path: Path, field: str, value: object, text: str) -> None:
    tensors, metadata = content(path)
    metadata["plan"] = json.dumps({**json.loads(metadata["plan"]), field: value})
    rewrite(path, tensors, metadata)
    with pytest.raises((ValueError, TypeError), match=text):
        ParoPlan.load(path)


@pytest.mark.parametrize("fields", ["{", "[]", "{}", '{"grid": [1, 1, 1]}'])
def test_other_fields_are_refused(path: Path, fields: str) -> None:
    tensors, metadata = content(path)
    rewrite(path, tensors, {**metadata, "plan": fields})
    with pytest.raises(ValueError, match="argument 'path': expected"):
        ParoPlan.load(path)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"num_heads": 40}, "argument 'num_heads': expected 2 of the plan, got 40"),
        ({"layers": ["a"]}, r"argument 'layers': expected the 2 layers of the plan \(a to b\), got 1"),
        ({"layers": ["a", "c"]}, "argument 'layers': .* got 2, of which c is not in the plan"),
        ({"grid": (3, 6, 9)}, r"argument 'grid': expected \(3, 8, 12\) of the plan, got \(3, 6, 9\)"),
        ({"text": (0, 0)}, r"argument 'text': expected \(5, 7\) of the plan, got \(0, 0\)"),
    ],
)
def test_plans_of_other_models_are_refused(path: Path, model: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ParoPlan.load(path, **model)  # type: ignore[arg-type]


def test_unknown_layers_and_steps(plan: ParoPlan) -> None:
    with pytest.raises(ValueError, match="argument 'layer': expected one of a, b, got c"):
        plan.mask(0, "c")
    with pytest.raises(ValueError, match="argument 'step': expected a value in"):
        plan.permutation(-1, "a")
