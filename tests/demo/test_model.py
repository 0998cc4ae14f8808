from __future__ import annotations

import cmath
import math

import pytest
import torch

from tokcore.demo.model import Attention, ModelConfig, RMSNorm, SwiGLU, Transformer, apply_rope, rope_tables

CONFIG = ModelConfig(vocab_size=50, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_size=48)


def test_shapes_dtypes_and_tied_classifier() -> None:
    model = Transformer(CONFIG)
    hidden = model(torch.zeros(3, 7, dtype=torch.int64))
    assert hidden.shape == (3, 7, 32)
    assert hidden.dtype == model.classifier().dtype == torch.bfloat16
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.classifier(), model.embedding.bfloat16())


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    first, state = Transformer(CONFIG, seed=5), torch.get_rng_state()
    torch.manual_seed(2)
    second = Transformer(CONFIG, seed=5)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.embedding, Transformer(CONFIG, seed=6).embedding)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state), "building a model leaves the global generator alone"


def test_rope_is_a_rotation_of_complex_pairs() -> None:
    x = torch.randn(1, 1, 5, 8, generator=torch.Generator().manual_seed(0))
    rotated = apply_rope(x, *rope_tables(5, 8, 10000.0))
    for position in range(5):
        for pair in range(4):
            expected = complex(x[0, 0, position, pair], x[0, 0, position, pair + 4])
            expected *= cmath.exp(1j * position * 10000.0 ** (-2 * pair / 8))
            assert rotated[0, 0, position, pair].item() == pytest.approx(expected.real, abs=1e-5)
            assert rotated[0, 0, position, pair + 4].item() == pytest.approx(expected.imag, abs=1e-5)


def test_rope_scores_depend_on_the_distance_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(8, generator=generator).expand(1, 1, 9, 8) for _ in range(2))
    tables = rope_tables(9, 8, 100.0)
    scores = (apply_rope(q, *tables) @ apply_rope(k, *tables).mT)[0, 0]
    torch.testing.assert_close(scores[5, 2], scores[8, 5], rtol=1e-5, atol=1e-5)
    assert abs(scores[5, 2] - scores[5, 3]) > 1e-3


def test_attention_against_a_loop_over_heads_and_positions() -> None:
    torch.manual_seed(0)
    layer = Attention(CONFIG, 0.3, 0.3)
    x = torch.randn(2, 6, 32)
    cos, sin = rope_tables(6, 8, CONFIG.rope_base)
    q = apply_rope((x @ layer.query.weight.T).unflatten(-1, (4, 8)).transpose(1, 2), cos, sin)
    k = apply_rope((x @ layer.key.weight.T).unflatten(-1, (2, 8)).transpose(1, 2), cos, sin)
    v = (x @ layer.value.weight.T).unflatten(-1, (2, 8)).transpose(1, 2)
    mixed = torch.zeros(2, 6, 4, 8)
    for head in range(4):
        group = head // 2  # neighbouring query heads share a key head
        for position in range(6):
            scores = (k[:, group, : position + 1] @ q[:, head, position, :, None])[..., 0] / math.sqrt(8)
            weights = scores.softmax(-1)
            mixed[:, position, head] = (weights[..., None] * v[:, group, : position + 1]).sum(1)
    torch.testing.assert_close(layer(x, cos, sin), mixed.flatten(2) @ layer.out.weight.T, rtol=1e-4, atol=1e-5)


def test_norm_and_mlp_against_their_formulas() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 32) * 5
    norm = RMSNorm(32, 1e-5)
    torch.nn.init.normal_(norm.weight)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=1e-5, atol=1e-6)
    mlp = SwiGLU(CONFIG, 0.2, 0.2)
    gate, up = x @ mlp.gate.weight.T, x @ mlp.up.weight.T
    torch.testing.assert_close(mlp(x), (gate * gate.sigmoid() * up) @ mlp.down.weight.T, rtol=1e-4, atol=1e-4)


def test_no_token_sees_the_future() -> None:
    model = Transformer(CONFIG, compute_dtype=torch.float32)
    tokens = torch.randint(50, (1, 10), generator=torch.Generator().manual_seed(0))
    changed = tokens.clone()
    changed[0, 6] = (changed[0, 6] + 1) % 50
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[0, :6], after[0, :6], rtol=1e-5, atol=1e-6)
    assert (before[0, 6:] - after[0, 6:]).abs().amax(-1).min() > 1e-4


def test_bad_head_counts_are_named() -> None:
    with pytest.raises(ValueError, match="num_kv_heads"):
        ModelConfig(num_heads=4, num_kv_heads=3)
