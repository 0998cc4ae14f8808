"""Byte-level BPE: training, caching, and the text that each token of a document shows."""

from __future__ import annotations

import codecs
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokcore.demo.corpus import Corpus

if TYPE_CHECKING:
    from tokenizers import Tokenizer

END_OF_TEXT = "<|endoftext|>"  # id 0; separates documents and starts every one of them


def train_tokenizer(corpus: Corpus, vocab_size: int) -> Tokenizer:
    """Byte-level BPE of at most ``vocab_size`` tokens: 256 bytes, the end-of-text token, and merges.

    Any text can be encoded and decodes to itself. A corpus too small for all merges gives fewer tokens.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    if vocab_size <= 256:
        raise ValueError(f"train_tokenizer: argument 'vocab_size': expected more than 256, got {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in corpus.documents), trainer)
    return tokenizer


def cached_tokenizer(corpus: Corpus, vocab_size: int, cache: Path) -> tuple[Tokenizer, bool]:
    """The tokenizer of ``corpus``, read from ``cache`` if it was trained before; also whether it was."""
    from tokenizers import Tokenizer

    path = cache / f"tokenizer-{vocab_size}-{corpus.fingerprint()[:16]}.json"
    if path.is_file():
        return Tokenizer.from_file(str(path)), True
    tokenizer = train_tokenizer(corpus, vocab_size)
    cache.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")  # renamed when complete: a killed run leaves no broken cache
    tokenizer.save(str(partial))
    partial.replace(path)
    return tokenizer, False


def encode_stream(tokenizer: Tokenizer, texts: Sequence[str]) -> Tensor:
    """All texts as one int64 vector, each preceded by the end-of-text token."""
    separator = tokenizer.token_to_id(END_OF_TEXT)
    if separator is None:
        raise ValueError(f"encode_stream: argument 'tokenizer': expected one with the token {END_OF_TEXT}")
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(list(texts)):
        ids.append(separator)
        ids.extend(encoding.ids)
    return torch.tensor(ids, dtype=torch.int64)


def token_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The characters that each token completes; joined they are the document.

    A token that ends inside a UTF-8 sequence shows nothing; the token that ends the sequence shows the character.
    """
    table = _byte_of_character()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    texts: list[str] = []
    for token_id in ids:
        token = tokenizer.id_to_token(token_id)
        if token is None or token == END_OF_TEXT:
            texts.append("")
        else:
            texts.append(decoder.decode(bytes(table[character] for character in token)))
    if texts:
        texts[-1] += decoder.decode(b"", final=True)
    return texts


def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE writes printable bytes as themselves and the others as the characters from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    table.update({chr(0x100 + index): byte for index, byte in enumerate(others)})
    return table
