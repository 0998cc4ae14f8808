from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tokcore.demo.corpus import Corpus
from tokcore.demo.tokenizer import END_OF_TEXT, cached_tokenizer, encode_stream, token_texts, train_tokenizer

TEXTS = ["def f(x):\n\treturn x\n", "", " ", "naïve 日本 😀\r\n", "".join(chr(i) for i in range(300)), "\ufffd\u200d"]


@pytest.mark.parametrize("text", TEXTS)
def test_round_trip(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text
    assert "".join(token_texts(tokenizer, ids)) == text


def test_texts_of_tokens_inside_a_character(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.encode("ü").ids, tokenizer.encode("𐍈").ids]
    assert len(ids[1]) == 4, "a character that the corpus does not have is four single bytes"
    assert token_texts(tokenizer, ids[1]) == ["", "", "", "𐍈"]
    assert token_texts(tokenizer, ids[1][:2]) == ["", "\ufffd"]
    assert token_texts(tokenizer, []) == []


def test_training_is_deterministic_and_bounded(corpus: Corpus, tokenizer: Tokenizer) -> None:
    assert train_tokenizer(corpus, 400).to_str() == tokenizer.to_str()
    assert tokenizer.get_vocab_size() == 400
    assert tokenizer.token_to_id(END_OF_TEXT) == 0
    with pytest.raises(ValueError, match="vocab_size"):
        train_tokenizer(corpus, 256)


def test_stream_separates_documents(tokenizer: Tokenizer) -> None:
    stream = encode_stream(tokenizer, ["width", "height"])
    assert stream.tolist() == [0, *tokenizer.encode("width").ids, 0, *tokenizer.encode("height").ids]


def test_cache_is_keyed_by_the_corpus(corpus: Corpus, tmp_path: Path) -> None:
    first, was_cached = cached_tokenizer(corpus, 300, tmp_path)
    assert not was_cached
    second, was_cached = cached_tokenizer(corpus, 300, tmp_path)
    assert was_cached
    assert second.to_str() == first.to_str()
    other = Corpus(corpus.documents[1:], corpus.held_out)
    assert not cached_tokenizer(other, 300, tmp_path)[1]
    assert len(list(tmp_path.iterdir())) == 2
