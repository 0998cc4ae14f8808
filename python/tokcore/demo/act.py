"""An act of the demo: one family of kernels at work on what the first act trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import RenderableType
from tokenizers import Tokenizer
from torch import Tensor

from tokcore.demo.corpus import Corpus
from tokcore.demo.model import Transformer
from tokcore.demo.progress import Progress
from tokcore.demo.settings import DemoSettings


@dataclass(frozen=True)
class ActContext:
    """What the first act leaves to those after it."""

    model: Transformer  # trained with tokcore's loss
    tokenizer: Tokenizer
    corpus: Corpus
    tokens: Tensor  # [tokens of the corpus] int64, held-out file excluded
    settings: DemoSettings
    quick: bool
    out: Path  # pictures and CSV files go here
    cache: Path  # what may be kept for the next run
    progress: Progress


@dataclass(frozen=True)
class ActResult:
    """What an act shows. ``passed`` is False when it found what it demonstrates not to hold; the demo then exits 1."""

    passed: bool
    report: Sequence[RenderableType]  # tables and lines, printed in this order
    pictures: Sequence[Path]
    data: Sequence[Path]


Act = Callable[[ActContext], ActResult]
