"""What others offer for a decode step, timed beside ``decode_attention``."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokcore.testing.cases import _flashinfer, _llama_cpp
from tokcore.testing.table import Case, Inputs, Variant

SDPA, DEQUANTIZE = "SDPA enable_gqa", "dequantize int8 + SDPA"
FLEX = "flex_attention decoding (compiled)"
LLAMA_CPP = {kind: f"llama.cpp flash attention {kind}" for kind in _llama_cpp.KINDS}
QUANTIZED_CACHE = "transformers QuantizedCache int4 + SDPA"
FLASHINFER = {torch.bfloat16: "FlashInfer bf16, pages of 64", torch.float8_e4m3fn: "FlashInfer fp8, pages of 64"}


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B, M, H, D] over k, v [B, Hkv, L, D]; out as q."""
    return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, enable_gqa=True).transpose(1, 2)


def _head_major(inputs: Inputs) -> tuple[Tensor, Tensor]:
    k, v = (inputs[name].transpose(1, 2).contiguous() for name in "kv")
    return k, v


def _prepare_sdpa(_: Case, inputs: Inputs) -> Callable[[], Any]:
    k, v = _head_major(inputs)
    q = inputs["q"]
    return lambda: {"out": sdpa(q, k, v)}


@functools.lru_cache(maxsize=1)
def _compiled_flex() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=False)
    return compiled


def _prepare_flex(_: Case, inputs: Inputs) -> Callable[[], Any]:
    k, v = _head_major(inputs)
    q = inputs["q"]
    flex = _compiled_flex()
    return lambda: {"out": flex(q.transpose(1, 2), k, v, enable_gqa=True).transpose(1, 2)}


def _prepare_dequantize(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """What a library without a fused kernel does each step: dequantize the whole cache, then attend."""
    codes = []
    for x in _head_major(inputs):
        scale = x.abs().amax(-1, keepdim=True).float() / 127
        codes.append(((x / scale).round().to(torch.int8), scale.to(x.dtype)))
    q = inputs["q"]

    def timed() -> dict[str, Tensor]:
        k, v = (code.to(q.dtype) * scale for code, scale in codes)
        return {"out": sdpa(q, k, v)}

    return timed


def _no_quanto(_: Case) -> str | None:
    for package, module in (("transformers", "transformers"), ("optimum-quanto", "optimum.quanto")):
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            return f"{package} is not installed (requirements-peers.txt)"
    return None


def _prepare_quantized_cache(_: Case, inputs: Inputs) -> Callable[[], Any]:
    """A step of a model with such a cache: the new token is stored, everything comes back dequantized, SDPA attends."""
    from transformers.cache_utils import QuantoQuantizedLayer

    k, v = _head_major(inputs)
    layer = QuantoQuantizedLayer(nbits=4, axis_key=0, axis_value=0, q_group_size=64, residual_length=128)
    layer.update(k[:, :, :-1], v[:, :, :-1])
    q, new_k, new_v = inputs["q"], k[:, :, -1:].contiguous(), v[:, :, -1:].contiguous()

    def timed() -> dict[str, Tensor]:
        return {"out": sdpa(q, *layer.update(new_k, new_v))}

    return timed


def peers(
    flops: Callable[[Case], float],
    cache_bytes: Callable[[float], Callable[[Case], float]],
    plain_bytes: Callable[[Case], int],
) -> tuple[Variant, ...]:
    """SDPA first; speed-ups refer to it."""
    whole, half = cache_bytes(2.0), cache_bytes(0.5)
    return (
        Variant(SDPA, "decode", _prepare_sdpa, flops=flops, bytes=whole, keeps=plain_bytes),
        Variant(FLEX, "decode", _prepare_flex, flops=flops, bytes=whole, keeps=plain_bytes),
        Variant(DEQUANTIZE, "decode", _prepare_dequantize, slow=True, flops=flops, bytes=cache_bytes(1.0)),
        Variant(
            QUANTIZED_CACHE,
            "decode",
            _prepare_quantized_cache,
            unavailable=_no_quanto,
            slow=True,
            flops=flops,
            bytes=half,
            backends=("cpu",),
        ),
        *(
            Variant(
                name,
                "decode",
                _flashinfer.decode(dtype),
                unavailable=_flashinfer.unavailable,
                flops=flops,
                bytes=cache_bytes(float(dtype.itemsize)),
                backends=("cuda",),
            )
            for dtype, name in FLASHINFER.items()
        ),
        *(
            Variant(
                name,
                "decode",
                _llama_cpp.preparer(kind),
                unavailable=lambda _: _llama_cpp.unavailable(),
                flops=flops,
                bytes=cache_bytes(1.0 if kind == "q8_0" else 0.5),
                backends=("cpu",),
            )
            for kind, name in LLAMA_CPP.items()
        ),
    )
