"""Token-level kernels for PyTorch."""

from __future__ import annotations

import importlib.metadata

from tokcore import nn
from tokcore.ops.linear_cross_entropy import linear_cross_entropy
from tokcore.ops.linear_logprobs import LinearLogprobs, linear_logprobs

try:
    __version__ = importlib.metadata.version("tokcore")
except importlib.metadata.PackageNotFoundError:  # a source tree on PYTHONPATH
    __version__ = "0.0.0+source"

__all__ = ["LinearLogprobs", "__version__", "linear_cross_entropy", "linear_logprobs", "nn"]
