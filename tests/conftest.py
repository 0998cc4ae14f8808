from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def _threads() -> None:
    """One thread per worker where several run side by side: they would only disturb each other."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
