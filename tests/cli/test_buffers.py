from __future__ import annotations

from pathlib import Path

import torch

from tokcore.testing.buffers import copies_needed, copy_inputs, last_level_cache_bytes, storage_bytes


def test_a_storage_counts_once() -> None:
    base = torch.zeros(10, 10)
    assert storage_bytes({"a": base, "b": [base[0], base.T], "c": "text", "d": torch.zeros(3)}) == 412
    assert storage_bytes(None) == 0


def test_copies_fill_twice_the_cache_within_the_limit() -> None:
    inputs = {"e": torch.zeros(1024)}  # 4 KiB
    assert copies_needed(inputs, 1024) == 1
    assert copies_needed(inputs, 4096) == 2
    assert copies_needed(inputs, 1 << 20) == 4
    assert copies_needed(inputs, 1 << 20, limit_bytes=9000) == 2
    assert copies_needed(inputs, 1 << 20, limit_bytes=1) == 1


def test_expanded_inputs_are_not_copied() -> None:
    assert copies_needed({"c": torch.zeros(1, 8).expand(100, 8)}, 1 << 30) == 1


def test_a_copy_has_the_values_and_the_gradient_flag() -> None:
    inputs = {"e": torch.randn(3, 4).requires_grad_(), "c": torch.randn(4, 3).T, "shift": 1}
    copy = copy_inputs(inputs)
    assert copy["e"].requires_grad
    assert copy["e"].is_leaf
    assert torch.equal(copy["e"], inputs["e"])
    assert copy["e"].data_ptr() != inputs["e"].data_ptr()
    assert copy["c"].stride() == inputs["c"].stride()
    assert copy["shift"] == 1


def test_cache_size_is_the_largest_level(tmp_path: Path) -> None:
    for index, size in enumerate(["48K", "2048K", "491520K"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert last_level_cache_bytes(tmp_path) == 480 << 20
    assert last_level_cache_bytes(tmp_path / "absent") == 32 << 20
