from __future__ import annotations

from collections.abc import Iterator

import pytest
from simt_support import Policy


@pytest.fixture(autouse=True)
def _default_policy() -> Iterator[None]:
    """No test inherits the policy of another."""
    Policy().use()
    yield
    Policy().use()
