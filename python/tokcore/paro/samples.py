"""Samples of q, k and v to calibrate from: in memory, or in files that are read a head at a time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tokcore.ops import _checks as checks

FORMAT = "tokcore.attention_samples"
VERSION = 1
SUFFIX = ".safetensors"

HeadSample = tuple[Tensor, Tensor, Tensor | None]
"""q, k and v of one head, each [B, 1, N, D]; v may be missing."""


class Sample(Protocol):
    """The attention of one layer at one step of the generation, for one or more prompts."""

    @property
    def step(self) -> int:
        """Number of the denoising step, counted from 0."""

    @property
    def layer(self) -> str:
        """Name of the attention layer."""

    @property
    def num_heads(self) -> int:
        """H."""

    @property
    def num_kv_heads(self) -> int:
        """Hkv, which divides H."""

    @property
    def num_tokens(self) -> int:
        """N."""

    @property
    def scale(self) -> float:
        """The factor of the scores."""

    def head(self, index: int) -> HeadSample:
        """q, k and v of one query head."""


@dataclass(frozen=True)
class AttentionSample:
    """A sample in memory: q [B, H, N, D], k and v [B, Hkv, N, D], after RoPE and in reading order; B prompts.

    Args:
        step: number of the denoising step, counted from 0.
        layer: name of the attention layer.
        q: float32, bfloat16 or float16.
        k: dtype of ``q``; H a multiple of Hkv.
        v: as k; without it nothing is said about the output.
        softmax_scale: the factor of the scores; None is 1/sqrt(D).

    Raises:
        TypeError: a wrong type or dtype. ValueError: a wrong rank or shape.
    """

    step: int
    layer: str
    q: Tensor
    k: Tensor
    v: Tensor | None = None
    softmax_scale: float | None = None

    def __post_init__(self) -> None:
        require = checks.wrapper_require("AttentionSample")
        checks.check_count(require, "step", self.step, 0, 2**31 - 1, "steps")
        check_layer(require, self.layer)
        checks.check_positive(require, "softmax_scale", self.softmax_scale, optional=True)
        tensors = {"q": self.q, "k": self.k} if self.v is None else {"q": self.q, "k": self.k, "v": self.v}
        for name, value in tensors.items():
            checks._tensor(require, name, value)
            checks._dtype(require, name, value, checks.DTYPES if name == "q" else (self.q.dtype,))
            checks._rank(require, name, value, 4)
        check_shapes(require, {name: tuple(value.shape) for name, value in tensors.items()})

    @property
    def num_heads(self) -> int:
        """H."""
        return self.q.size(1)

    @property
    def num_kv_heads(self) -> int:
        """Hkv, which divides H."""
        return self.k.size(1)

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.q.size(2)

    @property
    def scale(self) -> float:
        """The factor of the scores."""
        return 1.0 / math.sqrt(self.q.size(3)) if self.softmax_scale is None else self.softmax_scale

    def head(self, index: int) -> HeadSample:
        """q, k and v of one query head."""
        shared = index // (self.num_heads // self.num_kv_heads)
        v = None if self.v is None else self.v[:, shared : shared + 1]
        return self.q[:, index : index + 1], self.k[:, shared : shared + 1], v


def check_layer(require: checks.Require, layer: object) -> None:
    """A layer's name: printable and not empty."""
    named = isinstance(layer, str) and layer.isprintable() and layer != ""
    require(named, "layer", lambda: "a printable name", lambda: repr(layer))


def check_shapes(require: checks.Require, shapes: Mapping[str, Sequence[int]]) -> None:
    """Self-attention: q [B, H, N, D]; k and v [B, Hkv, N, D] with H a multiple of Hkv."""
    q, k = shapes["q"], shapes["k"]
    fits = len(k) == 4 and k[0] == q[0] and tuple(k[2:]) == tuple(q[2:]) and k[1] > 0 and q[1] % k[1] == 0
    require(
        fits,
        "k",
        lambda: f"shape [{q[0]}, Hkv, {q[2]}, {q[3]}], Hkv a divisor of {q[1]} (B, N, D and H of q)",
        lambda: checks.sizes(k),
    )
    if "v" in shapes:
        v = shapes["v"]
        require(tuple(v) == tuple(k), "v", lambda: f"shape {checks.sizes(k)} (shape of k)", lambda: checks.sizes(v))


@dataclass(frozen=True)
class StoredSample:
    """A sample in a safetensors file of its own, of which one head at a time is read."""

    path: Path
    step: int
    layer: str
    scale: float
    num_heads: int
    num_kv_heads: int
    num_tokens: int
    has_v: bool

    def head(self, index: int) -> HeadSample:
        """q, k and v of one query head."""
        shared = index // (self.num_heads // self.num_kv_heads)
        with _open(self.path) as file:
            q = file.get_slice("q")[:, index : index + 1]
            k = file.get_slice("k")[:, shared : shared + 1]
            v = file.get_slice("v")[:, shared : shared + 1] if self.has_v else None
        return q, k, v


def save_sample(path: Path, sample: AttentionSample) -> Path:
    """Write a sample as :func:`load_samples` reads it: tensors q, k and maybe v; step, layer and scale as metadata."""
    from safetensors.torch import save_file

    tensors = {"q": sample.q, "k": sample.k} if sample.v is None else {"q": sample.q, "k": sample.k, "v": sample.v}
    metadata = {
        "format": FORMAT,
        "version": str(VERSION),
        "step": str(sample.step),
        "layer": sample.layer,
        "scale": repr(sample.scale),
    }
    # Copies, as q, k and v may be views of one tensor, which the format cannot say.
    dense = {name: x.detach().clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}
    save_file(dense, path, metadata)
    return path


def load_samples(paths: Path | str | Iterable[Path | str]) -> list[StoredSample]:
    """The samples in safetensors files, or in every such file of a folder; tensors are read later, a head at a time.

    Raises:
        FileNotFoundError: no such file, or a folder without samples. ValueError: a file that holds no sample.
    """
    listed = [Path(paths)] if isinstance(paths, Path | str) else [Path(path) for path in paths]
    files: list[Path] = []
    for path in listed:
        if not path.exists():
            raise FileNotFoundError(f"tokcore.load_samples: no such file or folder: {path}")
        found = sorted(path.glob(f"*{SUFFIX}")) if path.is_dir() else [path]
        if not found:
            raise FileNotFoundError(f"tokcore.load_samples: no *{SUFFIX} in the folder {path}")
        files += found
    return [_read(path) for path in files]


def _read(path: Path) -> StoredSample:
    require = checks.wrapper_require("load_samples")
    with _open(path) as file:
        metadata = dict(file.metadata() or {})
        names = list(file.keys())
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}
        dtypes = {name: file.get_slice(name).get_dtype() for name in names}
    found = metadata.get("format", "none")
    require(found == FORMAT, "paths", lambda: f"a file of format {FORMAT}", lambda: f"format {found!r} in {path.name}")
    version = metadata.get("version", "none")
    require(
        version == str(VERSION), "paths", lambda: f"samples of version {VERSION}", lambda: f"{version} in {path.name}"
    )
    require(
        set(names) in ({"q", "k"}, {"q", "k", "v"}),
        "paths",
        lambda: "tensors q, k and maybe v",
        lambda: f"{', '.join(sorted(names)) or 'none'} in {path.name}",
    )
    require(
        len(set(dtypes.values())) == 1 and dtypes["q"] in ("F32", "BF16", "F16"),
        "paths",
        lambda: "q, k and v of one dtype out of float32, bfloat16, float16",
        lambda: f"{', '.join(sorted(set(dtypes.values())))} in {path.name}",
        TypeError,
    )
    require(len(shapes["q"]) == 4, "q", lambda: "4 dimensions", lambda: f"{len(shapes['q'])} in {path.name}")
    check_shapes(require, shapes)
    try:
        step, scale, layer = int(metadata["step"]), float(metadata["scale"]), metadata["layer"]
    except (KeyError, ValueError) as error:
        expected = "metadata step (int), layer and scale (number)"
        raise ValueError(checks.message("load_samples", "paths", expected, f"{error} in {path.name}")) from error
    checks.check_count(require, "step", step, 0, 2**31 - 1, "steps")
    checks.check_positive(require, "scale", scale, optional=False)
    check_layer(require, layer)
    heads, kv_heads, tokens = shapes["q"][1], shapes["k"][1], shapes["q"][2]
    return StoredSample(path, step, layer, scale, heads, kv_heads, tokens, "v" in names)


def _open(path: Path) -> Any:
    return open_safetensors("load_samples", path)


def open_safetensors(op: str, path: Path) -> Any:
    """``safetensors.safe_open`` whose refusal says which file, how long it is, and why."""
    try:
        from safetensors import SafetensorError, safe_open
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"tokcore.{op}: reading {path.name} needs the package safetensors: pip install 'tokcore[cli]'"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"tokcore.{op}: no such file: {path}")
    try:
        return safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        got = f"{path.name} of {path.stat().st_size} bytes: {error}"
        raise ValueError(checks.message(op, "path", "a whole safetensors file", got)) from error


def check_finite(require: checks.Require, name: str, value: Tensor, where: str) -> None:
    """No NaN and no infinity."""
    finite = bool(torch.isfinite(value.sum())) or bool(torch.isfinite(value).all())  # a sum may overflow
    require(finite, name, lambda: "finite values", lambda: f"{int((~torch.isfinite(value)).sum())} others in {where}")
