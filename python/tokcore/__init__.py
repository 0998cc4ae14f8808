"""Token-level kernels for PyTorch."""

from __future__ import annotations

import importlib.metadata

from tokcore import masks, nn, paro, speculative
from tokcore.block_mask import BlockMask
from tokcore.kv_presets import KV_PRESETS, KVPreset, kv_balancer, kv_channel_scale
from tokcore.ops.attention_block_scores import attention_block_scores
from tokcore.ops.block_sparse_attention import block_sparse_attention
from tokcore.ops.decode_attention import decode_attention
from tokcore.ops.kv_append import kv_append
from tokcore.ops.kv_compact import kv_compact
from tokcore.ops.kv_quantize import Quantized, kv_quantize
from tokcore.ops.kv_retier import kv_retier
from tokcore.ops.kv_saliency import kv_saliency
from tokcore.ops.linear_cross_entropy import linear_cross_entropy
from tokcore.ops.linear_logprobs import LinearLogprobs, linear_logprobs
from tokcore.ops.paro_attention import ParoOperands, paro_attention, paro_prepare
from tokcore.ops.sample import Sampled, sample
from tokcore.ops.verify_tree_greedy import verify_tree_greedy
from tokcore.ops.verify_tree_sample import verify_tree_sample
from tokcore.paro import ParoPlan, calibrate_paro
from tokcore.quantized_kv_cache import QuantizedKVCache
from tokcore.token_tree import TokenTree
from tokcore.verdict import Verdict

try:
    __version__ = importlib.metadata.version("tokcore")
except importlib.metadata.PackageNotFoundError:  # a source tree on PYTHONPATH
    __version__ = "0.0.0+source"

__all__ = [
    "KV_PRESETS",
    "BlockMask",
    "KVPreset",
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
