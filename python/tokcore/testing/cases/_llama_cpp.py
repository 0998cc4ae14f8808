"""llama.cpp's flash attention over quantized keys and values, driven through the C functions of its ggml libraries.

The libraries come with the package ``llama-cpp-python``, which has to be built from source.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokcore.testing.table import Case, Inputs

_F32 = 0
KINDS = {"q8_0": (8, 34), "q4_0": (2, 18)}  # ggml's number of the type, bytes of a block of 32
_BLOCK = 32


class _InitParams(ctypes.Structure):
    _fields_ = (("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool))


class _Plan(ctypes.Structure):
    """ggml_cplan: its first two fields and more than the rest of it, which ggml alone reads and writes."""

    _fields_ = (("work_size", ctypes.c_size_t), ("work_data", ctypes.c_void_p), ("rest", ctypes.c_uint64 * 16))


def unavailable() -> str | None:
    """Why it cannot be timed here, or None."""
    if _folder() is None:
        return "llama-cpp-python is not installed, or without its ggml libraries (bench/README.md)"
    return None


def _folder() -> Path | None:
    found = importlib.util.find_spec("llama_cpp")
    places = [] if found is None else list(found.submodule_search_locations or [])
    folders = [Path(place) / "lib" for place in places]
    return next((folder for folder in folders if list(folder.glob("libggml-cpu*.so*"))), None)


@functools.lru_cache(maxsize=1)
def _library() -> Callable[..., Any]:
    """Calls a function by name: (name, result type, *arguments)."""
    folder = _folder()
    assert folder is not None
    loaded = [
        ctypes.CDLL(str(sorted(folder.glob(f"{name}.so*"))[0]), mode=ctypes.RTLD_GLOBAL)
        for name in ("libggml-base", "libggml-cpu")
    ]

    def call(name: str, result: Any, *arguments: Any) -> Any:
        function = next(getattr(library, name) for library in loaded if hasattr(library, name))
        function.restype = result
        return function(*arguments)

    call("ggml_cpu_init", None)
    return call


class _Graph:
    """One flash attention over its own copies of q, k and v; the context's memory is freed with it."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, kind: str) -> None:
        B, M, H, D = q.shape
        _, Hkv, L, _ = k.shape
        self._call = _library()
        self._shape = (B, M, H, D)
        number, block_bytes = KINDS[kind]
        row_bytes = D // _BLOCK * block_bytes
        room = 2 * B * Hkv * L * row_bytes + 8 * B * M * H * D * 4 + (64 << 20)
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        self._context = pointer(self._call("ggml_init", pointer, _InitParams(room, None, False)))

        def tensor(kind_number: int, *sizes: int) -> ctypes.c_void_p:
            made = self._call(
                "ggml_new_tensor_4d", pointer, self._context, ctypes.c_int(kind_number), *(size(n) for n in sizes)
            )
            return pointer(made)

        queries = tensor(_F32, D, M, H, B)
        rows = q.transpose(1, 2).float().contiguous()
        ctypes.memmove(self._data(queries), rows.data_ptr(), rows.nbytes)
        cached = []
        for x in (k, v):
            codes = tensor(number, D, L, Hkv, B)
            numbers = x.float().contiguous()
            written = self._call(
                "ggml_quantize_chunk",
                ctypes.c_size_t,
                ctypes.c_int(number),
                pointer(numbers.data_ptr()),
                self._data(codes),
                size(0),
                size(B * Hkv * L),
                size(D),
                None,
            )
            assert written == B * Hkv * L * row_bytes
            cached.append(codes)
        self._out = pointer(
            self._call(
                "ggml_flash_attn_ext",
                pointer,
                self._context,
                queries,
                *cached,
                None,
                ctypes.c_float(D**-0.5),
                ctypes.c_float(0.0),
                ctypes.c_float(0.0),
            )
        )
        self._graph = pointer(self._call("ggml_new_graph", pointer, self._context))
        self._call("ggml_build_forward_expand", None, self._graph, self._out)
        threads = ctypes.c_int(torch.get_num_threads())
        self._plan = self._call("ggml_graph_plan", _Plan, self._graph, threads, None)
        self._work = torch.empty(max(1, self._plan.work_size), dtype=torch.uint8)
        self._plan.work_data = self._work.data_ptr()

    def _data(self, tensor: ctypes.c_void_p) -> ctypes.c_void_p:
        return ctypes.c_void_p(self._call("ggml_get_data", ctypes.c_void_p, tensor))

    def __del__(self) -> None:
        self._call("ggml_free", None, self._context)

    def __call__(self) -> dict[str, Tensor]:
        status = self._call("ggml_graph_compute", ctypes.c_int, self._graph, ctypes.byref(self._plan))
        assert status == 0, f"ggml status {status}"
        B, M, H, D = self._shape
        out = torch.empty(B, M, H, D)
        ctypes.memmove(out.data_ptr(), self._data(self._out), out.nbytes)
        return {"out": out}


def preparer(kind: str) -> Callable[[Case, Inputs], Callable[[], Any]]:
    """Of a variant over keys and values of ``kind``."""

    def prepare(_: Case, inputs: Inputs) -> Callable[[], Any]:
        k, v = (inputs[name].transpose(1, 2) for name in "kv")
        return _Graph(inputs["q"], k, v, kind)

    return prepare
