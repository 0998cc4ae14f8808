"""``speculative.generate`` on the CUDA kernels of its steps: the same text as on the CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "speculative"))

import draft_simt
import kv_simt
import pytest
import sampling_simt
import torch

from tokcore.demo.model import ModelConfig, Transformer
from tokcore.demo.token_trees.model import DemoModel
from tokcore.speculative import Drafter, DySpec, NGram, TokenRecycling, TriGram, generate, greedy_template

CONFIG = ModelConfig(vocab_size=61, hidden_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, mlp_size=64)
DRAFTERS: dict[str, Callable[[DemoModel], Drafter]] = {
    "recycling": lambda _: TokenRecycling(greedy_template(20, 4)),
    "ngram": lambda _: NGram(),
    "trigram": lambda _: TriGram(12, slots=256),
    "dyspec": lambda model: DySpec(model, 8, max_depth=3),
}


@pytest.fixture(scope="module")
def model() -> DemoModel:
    made = Transformer(CONFIG, seed=9)
    with torch.no_grad():
        for block in made.blocks.parameters():
            if block.dim() > 1:
                block.mul_(9.0)
    return DemoModel(made, 300)


SAMPLED = {"temperature": 0.7, "seed": 5, "top_p": 0.9}


@pytest.mark.parametrize(("drafter", "options"), [*((name, {}) for name in DRAFTERS), ("recycling", SAMPLED)])
def test_the_text_is_that_of_the_cpu(drafter: str, options: dict[str, Any], model: DemoModel) -> None:
    def run() -> tuple[list[torch.Tensor], list[list[int]]]:
        prompts = [[1, 2, 3, 4], [9, 8, 9, 8, 9]]
        made = DRAFTERS[drafter](model)
        found = generate(
            model, prompts, max_new_tokens=7, drafter=made, cache={"high": "int8", "residual": 40}, **options
        )
        return found.tokens, found.statistics.accepted

    expected = run()
    with ExitStack() as kernels:
        kernels.enter_context(draft_simt.in_place_of_the_cpu())
        kernels.enter_context(sampling_simt.in_place_of_the_cpu())
        kernels.enter_context(kv_simt.in_place_of_the_cpu("kv_append", "kv_compact"))
        tokens, accepted = run()
    assert all(torch.equal(a, b) for a, b in zip(tokens, expected[0], strict=True))
    assert accepted == expected[1]
