"""The peers of ``decode_attention`` that need a package: named when it is missing, right where it is there."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from tokcore.testing.cases import _llama_cpp
from tokcore.testing.cases._decode_peers import FLEX, QUANTIZED_CACHE
from tokcore.testing.cases.decode_attention import TABLE
from tokcore.testing.table import Variant

COMPILED = (FLEX, QUANTIZED_CACHE)  # they compile for a minute; tokcore bench compares them with the reference
HERE = [v for v in TABLE.variants if v.peer and v.measure == "decode" and "cpu" in v.backends]
PEERS = [v for v in HERE if v.name not in COMPILED]
SMALL = next(case for case in TABLE.cases if case.name.startswith("B=1,H=32") and case.parameters["L"] == 1024)


def test_llama_cpp_is_named_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").touch()
    importlib.invalidate_caches()
    reason = _llama_cpp.unavailable()
    assert reason is not None, "a package without its libraries is of no use"
    assert "llama-cpp-python" in reason
    monkeypatch.setattr(importlib.util, "find_spec", lambda *_: None)
    assert _llama_cpp.unavailable() == reason


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peers_attend_what_the_reference_attends(peer: Variant) -> None:
    reason = peer.unavailable(SMALL)
    if reason is not None:
        pytest.skip(reason)
    inputs = TABLE.make_inputs(SMALL, "cpu", 0)
    expected = TABLE.reference(inputs)["out"]
    found = peer.prepare(SMALL, inputs)()["out"].double()
    allowed = 0.2 if "q4" in peer.name else 0.03
    assert found.shape == expected.shape
    assert float((found - expected).abs().max() / expected.abs().max()) < allowed
    assert torch.isfinite(found).all()
