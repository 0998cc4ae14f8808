"""The file of a plan: safetensors, so that reading it executes nothing, with format, version and checksum.

Tensors are the plan's tensors by name. The metadata has ``format``, ``version``, ``plan`` (the other fields, as JSON)
and ``checksum``, the SHA-256 of version, plan, and each tensor's name, dtype, shape and bytes in the order of names.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokcore.block_mask import BLOCKS
from tokcore.ops import _checks as checks
from tokcore.paro.plan import ParoPlan, check_plan
from tokcore.paro.samples import open_safetensors
from tokcore.permutation import check_grid

FORMAT = "tokcore.paro_plan"
VERSION = 1

TENSORS = {
    "step_counts": torch.int64,
    "permutations": torch.int32,
    "mask_index": torch.int32,
    "masks": torch.int32,
    "head_class": torch.int32,
    "density": torch.float32,
    "recall": torch.float32,
    "psnr": torch.float32,
    "sparse_score": torch.float32,
    "quantization_score": torch.float32,
}
FIELDS = ("grid", "text", "block", "layers", "steps", "requested_density", "alpha", "tokcore_version")


def save_plan(plan: ParoPlan, path: Path) -> Path:
    """See :meth:`ParoPlan.save`."""
    check_plan(plan, checks.wrapper_require("ParoPlan.save"))
    try:
        from safetensors.torch import save_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "tokcore.ParoPlan.save: needs the package safetensors: pip install 'tokcore[cli]'"
        ) from error
    tensors = {name: getattr(plan, name).cpu().contiguous() for name in TENSORS}
    fields = json.dumps({name: getattr(plan, name) for name in FIELDS}, sort_keys=True)
    metadata = {"format": FORMAT, "version": str(VERSION), "plan": fields, "checksum": _checksum(fields, tensors)}
    save_file(tensors, path, metadata)
    return path


def load_plan(path: Path) -> ParoPlan:
    """See :meth:`ParoPlan.load`."""
    require = checks.wrapper_require("ParoPlan.load")
    with open_safetensors("ParoPlan.load", path) as file:
        metadata = dict(file.metadata() or {})
        found = metadata.get("format", "none")
        require(found == FORMAT, "path", lambda: f"format {FORMAT}", lambda: f"{found!r} in {path.name}")
        version = metadata.get("version", "none")
        require(
            version == str(VERSION), "path", lambda: f"a plan of version {VERSION}", lambda: f"{version} in {path.name}"
        )
        names = set(file.keys())
        differing = sorted(names ^ set(TENSORS))
        require(
            not differing,
            "path",
            lambda: f"the {len(TENSORS)} tensors of a plan",
            lambda: f"{path.name} in which these are missing or too many: {', '.join(differing)}",
        )
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in TENSORS}
    for name, dtype in TENSORS.items():
        checks._dtype(require, name, tensors[name], (dtype,))
    fields = metadata.get("plan", "")
    wanted, got = metadata.get("checksum", "none"), _checksum(fields, tensors)
    require(got == wanted, "path", lambda: f"content of SHA-256 {wanted}", lambda: f"{got} in {path.name}")
    content: dict[str, Any] = {**_parsed(require, fields, path), **tensors}
    plan = ParoPlan(**content)
    check_plan(plan, require)
    return plan


def _parsed(require: checks.Require, text: str, path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(
            checks.message("ParoPlan.load", "path", "JSON in the field 'plan'", f"{error} in {path.name}")
        ) from error
    require(
        isinstance(fields, dict) and set(fields) == set(FIELDS),
        "path",
        lambda: f"the fields {', '.join(FIELDS)}",
        lambda: f"{', '.join(sorted(fields)) if isinstance(fields, dict) else type(fields).__name__} in {path.name}",
    )
    check_grid(require, fields["grid"], fields["text"])
    known = isinstance(fields["block"], list) and tuple(fields["block"]) in BLOCKS
    require(known, "block", lambda: " or ".join(map(str, BLOCKS)), lambda: f"{fields['block']}")
    kinds: tuple[tuple[str, type], ...] = (("layers", str), ("steps", int))
    for name, kind in kinds:
        listed = isinstance(fields[name], list) and all(type(value) is kind for value in fields[name])
        require(listed, name, lambda kind=kind: f"a list of {kind.__name__}", lambda n=name: f"{fields[n]}", TypeError)  # type: ignore[misc]
    checks.check_positive(require, "requested_density", fields["requested_density"], optional=False)
    checks._number(require, "alpha", fields["alpha"])
    version = fields["tokcore_version"]
    require(isinstance(version, str), "tokcore_version", lambda: "a str", lambda: type(version).__name__, TypeError)
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _checksum(fields: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(f"{VERSION}\n{fields}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> bytes:
    """The elements of a dense CPU tensor, as they lie in memory."""
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()) if tensor.numel() else b""
