"""Tensors inside nested results: counting their bytes, and copying inputs so that a benchmark can rotate buffers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested mappings, sequences and objects with named fields."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors_in(getattr(value, name))


def storage_bytes(value: Any) -> int:
    """Bytes of the distinct storages behind the tensors in ``value``; views of one storage count once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors_in(value)}
    return sum(storages.values())


def last_level_cache_bytes(caches: Path = _CACHES) -> int:
    """Size of the largest cache that the kernel reports; 32 MiB where it reports none."""
    texts = [file.read_text().strip() for file in caches.glob("index*/size")]
    return max((int(text[:-1]) << 10 for text in texts if text.endswith("K") and text[:-1].isdigit()), default=32 << 20)


def copies_needed(inputs: Any, cache_bytes: int, *, most: int = 4, limit_bytes: int = 512 << 20) -> int:
    """How many copies of ``inputs`` to rotate so that a round does not find its inputs cached, within ``limit_bytes``.

    One where copying would change what is measured (expanded tensors) or cost more memory than the limit.
    """
    size = storage_bytes(inputs)
    if size == 0 or any(0 in tensor.stride() and tensor.numel() > 1 for tensor in tensors_in(inputs)):
        return 1
    return max(1, min(most, -(-2 * cache_bytes // size), limit_bytes // size))


def copy_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same values in buffers of their own; strides of dense tensors and ``requires_grad`` are kept."""

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().clone(memory_format=torch.preserve_format).requires_grad_(value.requires_grad)

    return {name: copy(value) for name, value in inputs.items()}
