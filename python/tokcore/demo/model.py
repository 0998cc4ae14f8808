"""A small decoder-only transformer: grouped-query attention, rotary positions, RMSNorm, SwiGLU, tied embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the model. ``num_heads`` query heads share ``num_kv_heads`` key and value heads."""

    vocab_size: int = 32768
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    mlp_size: int = 768
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                "ModelConfig: argument 'num_kv_heads': expected a divisor of "
                f"num_heads = {self.num_heads}, got {self.num_kv_heads}"
            )


def rope_tables(length: int, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2i/head_dim), each [length, head_dim/2] fp32."""
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return angle.cos().float(), angle.sin().float()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x[..., i], x[..., i + D/2]) of x [B, H, M, D] by the angles of their position; fp32 inside."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Linear(nn.Module):
    """x W^T without bias; fp32 weights, product in the dtype of x, so that bf16 training keeps fp32 master weights."""

    def __init__(self, in_features: int, out_features: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) * std)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., out_features]."""
        return F.linear(x, self.weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, computed in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension."""
        return F.rms_norm(x.float(), (x.size(-1),), self.weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention with rotary positions over x [B, M, C]."""

    def __init__(self, config: ModelConfig, std: float, out_std: float) -> None:
        super().__init__()
        self.config = config
        query_size = config.num_heads * config.head_dim
        kv_size = config.num_kv_heads * config.head_dim
        self.query = Linear(config.hidden_size, query_size, std)
        self.key = Linear(config.hidden_size, kv_size, std)
        self.value = Linear(config.hidden_size, kv_size, std)
        self.out = Linear(query_size, config.hidden_size, out_std)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Every position attends to itself and what comes before it."""
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        q, k = apply_rope(q, cos, sin), apply_rope(k, cos, sin)
        grouped = self.config.num_heads != self.config.num_kv_heads
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self.out(mixed.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x)."""

    def __init__(self, config: ModelConfig, std: float, out_std: float) -> None:
        super().__init__()
        self.gate = Linear(config.hidden_size, config.mlp_size, std)
        self.up = Linear(config.hidden_size, config.mlp_size, std)
        self.down = Linear(config.mlp_size, config.hidden_size, out_std)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to [..., C]."""
        return self.down(F.silu(self.gate(x)) * self.up(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Pre-norm attention and pre-norm MLP, each with a residual connection."""

    def __init__(self, config: ModelConfig, std: float) -> None:
        super().__init__()
        # Two additions per layer: so scaled, the residual stream's variance does not grow with the depth.
        out_std = std / math.sqrt(2 * config.num_layers)
        self.attention_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attention = Attention(config, std, out_std)
        self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = SwiGLU(config, std, out_std)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[B, M, C] to [B, M, C]."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """Maps tokens [B, M] to hidden states [B, M, C]; the loss takes them together with ``classifier()``.

    Parameters are fp32 (the optimizer's master weights); every matrix product and the residual stream are in
    ``compute_dtype``. Weights are drawn from ``seed`` alone.
    """

    def __init__(self, config: ModelConfig, seed: int = 0, compute_dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.config = config
        self.compute_dtype = compute_dtype
        std = 0.02
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Parameter(torch.randn(config.vocab_size, config.hidden_size) * std)
            self.blocks = nn.ModuleList(Block(config, std) for _ in range(config.num_layers))
            self.norm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, tokens: Tensor) -> Tensor:
        """Hidden states after the last norm, in the compute dtype."""
        cos, sin = rope_tables(tokens.size(-1), self.config.head_dim, self.config.rope_base)
        x = F.embedding(tokens, self.embedding).to(self.compute_dtype)
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.norm(x)  # type: ignore[no-any-return]

    def classifier(self) -> Tensor:
        """The tied classifier [V, C] in the compute dtype."""
        return self.embedding.to(self.compute_dtype)
