"""The demo's text: the source of the running Python's own standard library."""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from pathlib import Path

HELD_OUT = "textwrap.py"  # 20 kB of code and prose that every Python ships
# Installed packages are not the standard library; tests, codec tables and help texts would be most of the text.
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test", "encodings", "pydoc_data"}
)


@dataclass(frozen=True)
class Document:
    """One file: its path relative to the root (with forward slashes) and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Training documents in the order of their names, and the one document that training never sees."""

    documents: tuple[Document, ...]
    held_out: Document

    @property
    def num_chars(self) -> int:
        """Characters to train on."""
        return sum(len(document.text) for document in self.documents)

    def fingerprint(self) -> str:
        """SHA-256 over the names and texts of the training documents, as 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for document in self.documents:
            for part in (document.name, document.text):
                data = part.encode("utf-8", errors="surrogatepass")
                digest.update(len(data).to_bytes(8, "little") + data)
        return digest.hexdigest()


def load_corpus(root: Path | None = None, held_out: str = HELD_OUT) -> Corpus:
    """Read every ``.py`` file below ``root`` (the standard library by default), sorted by name.

    Undecodable bytes are replaced; duplicates of the held-out text are left out of training as well.
    Raises ``FileNotFoundError`` when the held-out file or all training files are missing.
    """
    root = Path(sysconfig.get_path("stdlib")) if root is None else root
    paths = [path for path in root.rglob("*.py") if not SKIPPED_FOLDERS & set(path.relative_to(root).parts[:-1])]
    documents = [Document(path.relative_to(root).as_posix(), _read(path)) for path in paths]
    documents.sort(key=lambda document: document.name)
    aside = [document for document in documents if document.name == held_out]
    if not aside:
        raise FileNotFoundError(f"tokcore demo: no {held_out!r} below {root}; the demo needs the library's sources")
    training = tuple(document for document in documents if document.text.strip() and document.text != aside[0].text)
    if not training:
        raise FileNotFoundError(f"tokcore demo: no Python source to train on below {root}")
    return Corpus(training, aside[0])


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")
