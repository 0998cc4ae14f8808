from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tokcore import QuantizedKVCache
from tokcore.demo.cached_model import CachedTransformer
from tokcore.demo.model import ModelConfig, Transformer

CONFIG = ModelConfig(vocab_size=61, hidden_size=48, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=32, mlp_size=64)


def random_model(dtype: torch.dtype = torch.bfloat16) -> Transformer:
    """Larger weights than those a training starts with, so that attention is not uniform."""
    model = Transformer(CONFIG, seed=7, compute_dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model


def random_tokens(batch: int, count: int) -> Tensor:
    return torch.randint(CONFIG.vocab_size, (batch, count), generator=torch.Generator().manual_seed(11))


def cached(model: Transformer, batch: int, high: str, **options: object) -> CachedTransformer:
    factory = partial(QuantizedKVCache, batch=batch, capacity=160, high=high, low=None, page_size=16, residual=16)
    return CachedTransformer(model, partial(factory, **options))  # type: ignore[arg-type]


def in_blocks(model: CachedTransformer, tokens: Tensor, sizes: list[int]) -> Tensor:
    assert sum(sizes) == tokens.size(1)
    return torch.cat([model(part) for part in tokens.split(sizes, dim=1)], dim=1)


@pytest.mark.parametrize("sizes", [[1] * 75, [75], [3, 40, 1, 31]], ids=["tokens", "prompt", "blocks"])
def test_fp32_equals_the_full_forward(sizes: list[int]) -> None:
    model, tokens = random_model(torch.float32), random_tokens(2, 75)
    run = cached(model, 2, "fp32")
    hidden = in_blocks(run, tokens, sizes)
    assert run.cache.lengths.tolist() == [75, 75]
    torch.testing.assert_close(hidden, model(tokens), rtol=1e-4, atol=1e-4)


def test_bf16_equals_the_full_forward_within_rounding() -> None:
    tokens = random_tokens(1, 90)
    exact = random_model(torch.float32)(tokens)
    model = random_model()
    run = cached(model, 1, "bf16")
    error = (in_blocks(run, tokens, [40, *[1] * 50]).float() - exact).norm()
    allowed = (model(tokens).float() - exact).norm()
    assert error <= 1.5 * allowed
    torch.testing.assert_close(run.logits(model(tokens)), model(tokens) @ model.classifier().T)


def test_ragged_rows_equal_rows_alone() -> None:
    model, tokens = random_model(torch.float32), random_tokens(3, 40)
    run = cached(model, 3, "fp32")
    counts = [[9, 20, 0], [20, 0, 7], [1, 1, 13]]
    found: list[list[Tensor]] = [[], [], []]
    starts = [0, 0, 0]
    for lengths in counts:
        part = torch.zeros(3, max(lengths), dtype=torch.int64)
        for row, count in enumerate(lengths):
            part[row, :count] = tokens[row, starts[row] : starts[row] + count]
        hidden = run(part, lengths)
        for row, count in enumerate(lengths):
            found[row].append(hidden[row, :count])
            starts[row] += count
    for row, count in enumerate(starts):
        torch.testing.assert_close(torch.cat(found[row]), model(tokens[row : row + 1, :count])[0], rtol=1e-4, atol=1e-4)


def test_positions_move_the_angles() -> None:
    model, tokens = random_model(torch.float32), random_tokens(1, 20)
    shifted = cached(model, 1, "fp32")(tokens, positions=torch.arange(20)[None] + 100)
    torch.testing.assert_close(shifted, model(tokens), rtol=1e-3, atol=1e-3)  # rope depends on distances alone
    stretched = cached(model, 1, "fp32")(tokens, positions=torch.arange(20)[None] * 3)
    assert (stretched - model(tokens)).abs().max() > 0.1


def test_options_reach_the_attention() -> None:
    model, tokens = random_model(torch.float32), random_tokens(1, 40)
    windowed = cached(model, 1, "fp32", sinks=0)(tokens, window=4)
    assert (windowed - model(tokens)).abs().max() > 0.1
    torch.testing.assert_close(windowed[:, :4], model(tokens[:, :4]), rtol=1e-4, atol=1e-4)


def test_a_quantized_cache_changes_little_and_training_changes_nothing() -> None:
    model, tokens = random_model(), random_tokens(1, 120)
    expected = cached(model, 1, "bf16")(tokens).float()
    run = cached(model, 1, "int8")
    with torch.no_grad():
        model.embedding.zero_()
    change = (run(tokens).float() - expected).norm() / expected.norm()
    assert 0 < change < 0.05


def test_what_does_not_fit_is_refused() -> None:
    run = cached(random_model(), 1, "int8")
    run(random_tokens(1, 150))
    with pytest.raises(ValueError, match="capacity"):
        run(random_tokens(1, 11))
    assert run.cache.lengths.tolist() == [150]
    run(random_tokens(1, 10))
    with pytest.raises(ValueError, match=r"argument 'positions': expected values in \[0, 160\), got 160"):
        cached(random_model(), 1, "int8")(random_tokens(1, 1), positions=torch.tensor([[160]]))


def test_a_tree_equals_its_paths_one_by_one() -> None:
    from tokcore import TokenTree, Verdict, kv_compact

    model, prompt = random_model(torch.float32), random_tokens(2, 30)
    parents = torch.tensor([[-1, 0, 0, 1, 1, 2, 4], [-1, 0, 1, 0, 3, 0, 0]], dtype=torch.int32)
    tree = TokenTree(parents, random_tokens(2, 37)[:, 30:].contiguous(), counts=[7, 5])
    run = cached(model, 2, "fp32")
    run(prompt)
    hidden = run(tree.tokens, tree=tree)
    assert run.cache.lengths.tolist() == [37, 35]
    for b, count in enumerate(tree.counts.tolist()):
        for node in range(count):
            path = tree.tokens[b, tree.path(b, node)]
            alone = model(torch.cat([prompt[b], path]).unsqueeze(0))
            torch.testing.assert_close(hidden[b, node], alone[0, -1], rtol=1e-4, atol=1e-4)
    nodes = torch.tensor([[0, 1, 4, 6], [0, 3, 4, -1]], dtype=torch.int32)
    verdict = Verdict(nodes, torch.tensor([4, 3], dtype=torch.int32), torch.tensor([5, 9]))
    kv_compact(run.cache, verdict, tree)
    after = run(verdict.next_token.unsqueeze(1))
    for b, count in enumerate([4, 3]):
        kept = tree.tokens[b, nodes[b, :count].long()]
        alone = model(torch.cat([prompt[b], kept, verdict.next_token[b : b + 1]]).unsqueeze(0))
        torch.testing.assert_close(after[b, 0], alone[0, -1], rtol=1e-4, atol=1e-4)
