from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import tokcore
from tokcore.demo.corpus import Corpus, Document
from tokcore.demo.model import ModelConfig, Transformer
from tokcore.demo.score import score_document, score_tokens, scoring_windows

CONFIG = ModelConfig(vocab_size=400, hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8, mlp_size=48)


@pytest.mark.parametrize("length", [1, 2, 7, 8])
@pytest.mark.parametrize("num_predictions", [1, 2, 5, 8, 9, 31])
def test_windows_keep_every_prediction_once_with_context(num_predictions: int, length: int) -> None:
    windows = scoring_windows(num_predictions, length)
    length = min(length, num_predictions)
    kept = [p for window in windows for p in range(window.first_new, window.start + length)]
    assert kept == list(range(num_predictions))
    for window in windows:
        assert 0 <= window.start <= num_predictions - length
        assert window.first_new - window.start >= min(window.first_new, length // 2)


def test_scores_sum_to_the_loss() -> None:
    model = Transformer(CONFIG)
    stream = torch.randint(400, (65,), generator=torch.Generator().manual_seed(0))
    result = score_tokens(model, stream, length=64, topk=4)
    with torch.no_grad():
        hidden, classifier = model(stream[None, :-1])[0], model.classifier()
    loss = tokcore.linear_cross_entropy(hidden, classifier, stream[1:], reduction="sum")
    assert isinstance(loss, torch.Tensor)
    torch.testing.assert_close(-result.logprob.sum(), loss, rtol=1e-6, atol=1e-4)
    logprobs = F.log_softmax(hidden.double() @ classifier.double().T, dim=-1)
    torch.testing.assert_close(-result.logprob.sum().double(), F.nll_loss(logprobs, stream[1:], reduction="sum"))
    assert result.entropy is not None
    assert result.topk_values is not None
    torch.testing.assert_close(result.entropy.double(), -(logprobs.exp() * logprobs).sum(-1), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(result.topk_values.double(), logprobs.topk(4).values, rtol=1e-5, atol=1e-4)


def test_windows_of_a_long_text_see_their_context() -> None:
    model = Transformer(CONFIG, compute_dtype=torch.float32)
    stream = torch.randint(400, (200,), generator=torch.Generator().manual_seed(0))
    result = score_tokens(model, stream, length=16, topk=1)
    with torch.no_grad():
        for window in scoring_windows(199, 16):
            hidden = model(stream[None, window.start : window.start + 16])[0]
            logprobs = F.log_softmax(hidden @ model.embedding.T, dim=-1)
            for position in range(window.first_new, window.start + 16):
                expected = logprobs[position - window.start, stream[position + 1]].item()
                assert result.logprob[position].item() == pytest.approx(expected, abs=1e-4)


def test_document(corpus: Corpus, tokenizer: Tokenizer) -> None:
    scored = score_document(Transformer(CONFIG), tokenizer, corpus.held_out, length=32, topk=3)
    text = corpus.held_out.text
    assert "".join(scored.texts) == text
    assert len(scored.texts) == scored.logprob.numel() == scored.entropy.numel() == len(scored.topk_texts)
    assert scored.loss == pytest.approx(math.log(400), abs=0.1), "an untrained model is nearly uniform"
    bits = scored.loss * len(scored.texts) / math.log(2) / len(text.encode())
    assert scored.bits_per_byte == pytest.approx(bits)
    marked = scored.highest_entropy(5)
    assert all(scored.texts[position].strip() for position in marked)
    values = [scored.entropy[position].item() for position in marked]
    assert values == sorted(values, reverse=True)
    visible = [value for value, shown in zip(scored.entropy.tolist(), scored.texts, strict=True) if shown.strip()]
    assert values[0] == max(visible)


def test_an_empty_document_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"'nothing\.py'"):
        score_document(Transformer(CONFIG), tokenizer, Document("nothing.py", ""), length=8, topk=1)
