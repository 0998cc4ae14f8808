"""transformers' models over tokcore's caches; random weights, nothing is downloaded."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers", reason="needs the package transformers")

from tokcore import TokenTree  # noqa: E402
from tokcore.integrations.transformers import TokcoreCache, TransformersModel  # noqa: E402
from tokcore.speculative import Drafter, DySpec, NGram, TokenRecycling, generate  # noqa: E402

NEW = 24
SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
}


def make(name: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES, **options)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model


def prompts() -> Tensor:
    return torch.randint(97, (2, 9), generator=torch.Generator().manual_seed(1))


def by_transformers(model: Any, tokens: Tensor, **options: Any) -> Tensor:
    fixed = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found: Tensor = model.generate(tokens, **fixed, **options)
    return found[:, tokens.size(1) :]


@pytest.mark.parametrize("name", ["Llama", "Qwen2"])
def test_greedy_output_is_that_of_transformers(name: str) -> None:
    model = make(name)
    tokens = prompts()
    expected = by_transformers(model, tokens)  # with transformers' own attention and cache
    assert len(set(expected.flatten().tolist())) > 5
    ours = TransformersModel(model)
    drafters: list[Drafter | None] = [None, TokenRecycling(), NGram(), DySpec(ours, 12)]
    for drafter in drafters:
        result = generate(ours, tokens, max_new_tokens=NEW, drafter=drafter)
        assert torch.equal(torch.stack(result.tokens), expected)
    assert result.statistics.steps < NEW
    cache = TokcoreCache.of(model, 2, 128)
    assert torch.equal(by_transformers(model, tokens, past_key_values=cache), expected)
    assert cache.get_seq_length() == tokens.size(1) + NEW - 1


def test_a_quantized_cache_and_ragged_prompts() -> None:
    ours = TransformersModel(make("Llama"))
    rows = [prompts()[0].tolist(), prompts()[1].tolist()[:4]]
    options: dict[str, Any] = {"max_new_tokens": NEW, "cache": {"high": "int8", "low": None, "residual": 96}}
    plain = generate(ours, rows, **options).tokens
    drafted = generate(ours, rows, drafter=TokenRecycling(), **options).tokens
    alone = [generate(ours, [row], **options).tokens[0] for row in rows]
    for row in range(2):
        assert torch.equal(plain[row], drafted[row])
        assert torch.equal(plain[row], alone[row])


def test_sliding_windows() -> None:
    options = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}
    model = make("Qwen2", **options)
    expected = by_transformers(model, prompts())
    without = by_transformers(make("Qwen2"), prompts())
    assert not torch.equal(expected, without)
    result = generate(
        TransformersModel(model), prompts(), max_new_tokens=NEW, drafter=NGram(), cache={"sinks": 0, "high": "fp32"}
    )
    assert torch.equal(torch.stack(result.tokens), expected)


def test_long_prompts_are_read_in_pieces() -> None:
    model = make("Llama")
    tokens = torch.randint(97, (1, 300), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = model(tokens).logits[:, -1:]
    session = TransformersModel(model).session(1, 400)
    session.append(tokens[:, :-1], torch.tensor([299], dtype=torch.int32))
    logits = session.logits(session.forward(TokenTree.chain(tokens[:, -1:])))
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-2 * float(expected.abs().max()))


def test_what_is_not_supported_raises() -> None:
    model = make("Llama")
    TransformersModel(model)
    padding = torch.tensor([[0, 0, *[1] * 7]] * 2)
    with pytest.raises(NotImplementedError, match="'attention_mask': expected all ones"):
        model(prompts(), attention_mask=padding, past_key_values=TokcoreCache.of(model, 2, 64))
    with pytest.raises(ValueError, match="'past_key_values': expected a TokcoreCache"):
        model(prompts(), use_cache=False)
    with pytest.raises(NotImplementedError, match="'model': expected one that is not trained"):
        model(prompts(), past_key_values=TokcoreCache.of(model, 2, 64))  # with grad
    with pytest.raises(NotImplementedError, match="'num_beams'"):
        by_transformers(model, prompts(), past_key_values=TokcoreCache.of(model, 4, 64), num_beams=2)
    with pytest.raises(NotImplementedError, match="'model': expected dtype float32 or bfloat16 or float16"):
        TransformersModel(make("Llama").double())
