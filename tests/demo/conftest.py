from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from tokcore.demo.corpus import Corpus, load_corpus
from tokcore.demo.model import ModelConfig
from tokcore.demo.score import ScoredText
from tokcore.demo.settings import DemoSettings
from tokcore.demo.tokenizer import train_tokenizer

SOURCE = '''"""Prose, code and a few characters beyond ASCII: é, ü, 日本, 😀."""

def area_{name}(width, height):
    """The area of a rectangle."""
\treturn width * height  # product


class Shape{name}:
    sides = {sides}
    def describe(self):
        return f"{{self.sides}} sides [bold]<b>&amp;"
'''


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree shaped like a standard library, with folders that do not belong to the corpus."""
    root = tmp_path_factory.mktemp("library")
    for index in range(12):
        (root / f"module_{index}.py").write_text(SOURCE.format(name=index, sides=index) * 3, encoding="utf-8")
    (root / "textwrap.py").write_text(SOURCE.format(name="HeldOut", sides=99) * 6, encoding="utf-8")
    for folder in ("site-packages", "test", "package/__pycache__"):
        (root / folder).mkdir(parents=True)
        (root / folder / "other.py").write_text("not_in_the_corpus = 1\n")
    (root / "package" / "inner.py").write_text("inside = True\n")
    (root / "package" / "latin.py").write_bytes(b"# caf\xe9\n")
    (root / "package" / "empty.py").touch()
    return root


@pytest.fixture(scope="session")
def corpus(library: Path) -> Corpus:
    return load_corpus(library)


@pytest.fixture(scope="session")
def tokenizer(corpus: Corpus) -> Tokenizer:
    return train_tokenizer(corpus, 400)


@pytest.fixture
def settings() -> DemoSettings:
    """The demo in miniature: half a second of training."""
    model = ModelConfig(
        vocab_size=400, hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, mlp_size=64
    )
    return DemoSettings(
        model=model, steps=12, batch_size=2, seq_len=32, warmup_steps=4, probe_every=5, topk=3, learning_rate=5e-3
    )


@pytest.fixture
def scored() -> ScoredText:
    texts = (
        "def",
        " f",
        "(",
        "x",
        "):",
        "\n    ",
        "return",
        " x",
        " <",
        " 2",
        "\n",
        "",
        "日",
        "\n\n",
        "\tpass",
        "\n",
    ) * 8
    count = len(texts)
    entropy = torch.linspace(0.5, 6.0, count)[torch.randperm(count, generator=torch.Generator().manual_seed(3))]
    return ScoredText(
        name="sample.py",
        texts=texts,
        logprob=-entropy / 2,
        entropy=entropy,
        topk_logprob=torch.tensor([[-0.5, -1.5]]).expand(count, 2),
        topk_texts=((" x", "<script>"),) * count,
    )
