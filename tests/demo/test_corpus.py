from __future__ import annotations

from pathlib import Path

import pytest

from tokcore.demo.corpus import Corpus, Document, load_corpus


def test_only_the_library_itself_in_order_of_names(library: Path) -> None:
    corpus = load_corpus(library)
    names = [document.name for document in corpus.documents]
    assert names == sorted([*(f"module_{i}.py" for i in range(12)), "package/inner.py", "package/latin.py"])
    assert corpus.held_out.name == "textwrap.py"
    assert all("not_in_the_corpus" not in document.text for document in corpus.documents)


def test_undecodable_bytes_are_replaced(corpus: Corpus) -> None:
    texts = {document.name: document.text for document in corpus.documents}
    assert texts["package/latin.py"] == "# caf\ufffd\n"


def test_fingerprint_sees_names_texts_and_their_boundaries() -> None:
    held_out = Document("h.py", "h")
    corpora = [
        Corpus((Document("a", "bc"),), held_out),
        Corpus((Document("ab", "c"),), held_out),
        Corpus((Document("a", "bd"),), held_out),
        Corpus((Document("a", "b"), Document("c", "")), held_out),
    ]
    prints = [corpus.fingerprint() for corpus in corpora]
    assert len(set(prints)) == len(prints)
    assert corpora[0].fingerprint() == Corpus((Document("a", "bc"),), Document("x", "y")).fingerprint()


def test_a_copy_of_the_held_out_text_is_not_trained_on(tmp_path: Path) -> None:
    for name in ("textwrap.py", "copy.py"):
        (tmp_path / name).write_text("same = 1\n")
    (tmp_path / "other.py").write_text("other = 2\n")
    assert [document.name for document in load_corpus(tmp_path).documents] == ["other.py"]


def test_missing_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"textwrap\.py"):
        load_corpus(tmp_path)
    (tmp_path / "textwrap.py").write_text("x = 1\n")
    with pytest.raises(FileNotFoundError, match="no Python source to train on"):
        load_corpus(tmp_path)


def test_the_running_python_has_a_corpus() -> None:
    corpus = load_corpus()
    assert corpus.num_chars > 2_000_000
    assert len(corpus.held_out.text) > 5_000
