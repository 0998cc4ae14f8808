from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tokcore.demo.model import ModelConfig, Transformer
from tokcore.demo.token_trees.model import DemoModel

CONFIG = ModelConfig(vocab_size=61, hidden_size=48, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, mlp_size=64)


def random_model(seed: int, scale: float = 9.0) -> DemoModel:
    """Weights large enough that the next token depends on the text and not on the last token alone."""
    model = Transformer(CONFIG, seed=seed)
    with torch.no_grad():
        for block in model.blocks.parameters():
            if block.dim() > 1:
                block.mul_(scale)
    return DemoModel(model, 800)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These models are too small for two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model() -> DemoModel:
    return random_model(9)


@pytest.fixture(scope="session")
def small() -> DemoModel:
    return random_model(8)
