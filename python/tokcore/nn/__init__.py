"""Modules over the ops of this library."""

from tokcore.nn.linear_cross_entropy import LinearCrossEntropy, LinearCrossEntropyLoss

__all__ = ["LinearCrossEntropy", "LinearCrossEntropyLoss"]
