"""Case table of ``draft_ngram``."""

from __future__ import annotations

import torch

from tokcore.ops.draft_ngram import draft_ngram
from tokcore.reference.draft_ngram import draft_ngram as reference_ngram
from tokcore.testing.cases._draft import TREES, budgets_of, case_of, generator_of, named, table_of
from tokcore.testing.table import Case, Inputs, Outputs

_MAIN = "B=1,L=4096,N=32"
_OPTIONS = ("max_nodes", "longest", "shortest", "max_depth")
CASES = (
    case_of("B=1,L=1,N=4", B=1, L=1, V=3, max_nodes=4),
    case_of("B=5,L=60,N=40,V=4", B=5, L=60, V=4, max_nodes=40),
    case_of("B=3,L=200,N=256,V=3,n=5..2", B=3, L=200, V=3, max_nodes=256, longest=5, shortest=2, max_depth=20),
    case_of("B=2,L=97,N=9,V=9,n=1", B=2, L=97, V=9, max_nodes=9, longest=1, max_depth=3),
    case_of("B=0,L=8,N=5", B=0, L=8, V=4, max_nodes=5),
    case_of(_MAIN, "bench bench-cuda", B=1, L=4096, V=500, max_nodes=32),
)


def make_inputs(case: Case, device: str, seed: int) -> Inputs:
    """Texts over few tokens, so that n-grams come back; empty ones among them."""
    p = case.parameters
    generator = generator_of(seed)
    B, L = p["B"], p["L"]
    lengths = torch.randint(0, L + 1, (B,), generator=generator, dtype=torch.int32)
    lengths[:1] = L
    inputs: Inputs = {
        "history": torch.randint(p["V"], (B, L), generator=generator).to(device),
        "lengths": lengths.to(device),
        "budgets": (budgets_of(B, p["max_nodes"], generator) if B else lengths).to(device),
    }
    return inputs | {name: p[name] for name in _OPTIONS if name in p}


def run(inputs: Inputs) -> Outputs:
    """tokcore."""
    return named(draft_ngram(**inputs), TREES)


def reference(inputs: Inputs) -> Outputs:
    """Plain Python."""
    return named(reference_ngram(**inputs), TREES)


TABLE = table_of(
    "draft_ngram",
    CASES,
    make_inputs,
    run,
    reference,
    _MAIN,
    ("ragged histories", "budgets a request", "n from 1 to 64"),
)
