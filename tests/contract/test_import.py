"""What an import costs, and what it says when the kernels are missing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import tokcore


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_import_is_cheap() -> None:
    code = """
import sys, time, torch
before = set(sys.modules)
start = time.perf_counter()
import tokcore
print(time.perf_counter() - start, *sorted(set(sys.modules) - before))
"""
    best = float("inf")
    for _ in range(3):
        done = run(f"import sys; sys.path[:0] = {sys.path!r}\n{code}")
        assert done.returncode == 0, done.stderr
        seconds, *modules = done.stdout.split()
        best = min(best, float(seconds))
        assert not [name for name in modules if name.split(".")[0] in {"numpy", "rich", "typer", "matplotlib", "sympy"}]
        assert not [name for name in modules if name.startswith(("torch._dynamo", "torch._inductor"))]
    assert best < 0.3


def test_public_names() -> None:
    assert sorted(tokcore.__all__) == [
        "BlockMask",
        "KVPreset",
        "KV_PRESETS",
        "LinearLogprobs",
        "ParoOperands",
        "ParoPlan",
        "Quantized",
        "QuantizedKVCache",
        "Sampled",
        "TokenTree",
        "Verdict",
        "__version__",
        "attention_block_scores",
        "block_sparse_attention",
        "calibrate_paro",
        "decode_attention",
        "kv_append",
        "kv_balancer",
        "kv_channel_scale",
        "kv_compact",
        "kv_quantize",
        "kv_retier",
        "kv_saliency",
        "linear_cross_entropy",
        "linear_logprobs",
        "masks",
        "nn",
        "paro",
        "paro_attention",
        "paro_prepare",
        "sample",
        "speculative",
        "verify_tree_greedy",
        "verify_tree_sample",
    ]
    assert all(hasattr(tokcore, name) for name in tokcore.__all__)


def test_without_kernels_the_import_says_so(tmp_path: Path) -> None:
    package = Path(tokcore.__file__).parent
    copy = tmp_path / "tokcore"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__", "cli", "demo"))
    done = run("import sys; sys.path.insert(0, sys.argv[1]); import tokcore", str(tmp_path))
    assert done.returncode != 0
    assert "ImportError: tokcore: no CPU kernels (not loaded: no file libtokcore_cpu.so in" in done.stderr


def test_a_broken_library_is_told_apart_from_a_missing_one(tmp_path: Path) -> None:
    package = Path(tokcore.__file__).parent
    copy = tmp_path / "tokcore"
    shutil.copytree(package, copy, ignore=shutil.ignore_patterns("*.so", "__pycache__", "cli", "demo"))
    (copy / "libtokcore_cpu.so").write_bytes(b"not a library")
    done = run("import sys; sys.path.insert(0, sys.argv[1]); import tokcore", str(tmp_path))
    assert done.returncode != 0
    assert "ImportError: tokcore: no CPU kernels (not loaded: " in done.stderr
    assert "no file" not in done.stderr
