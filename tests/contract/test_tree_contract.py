"""``tree_links``: registration, one error text from kernel and fake, and traced behaviour."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

LINKS = torch.ops.tokcore.tree_links


def arguments() -> dict[str, Any]:
    parents = torch.tensor([[-1, 0, 0, 1], [-1, 0, 1, 2]], dtype=torch.int32)
    return {"parents": parents, "counts": torch.tensor([4, 3], dtype=torch.int32)}


def test_opcheck() -> None:
    torch.library.opcheck(LINKS, (), arguments())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parents": torch.zeros(2, 4, dtype=torch.int64)}, "argument 'parents': expected dtype int32, got int64"),
        ({"counts": torch.zeros(2)}, "argument 'counts': expected dtype int32, got float32"),
        ({"parents": torch.zeros(4, dtype=torch.int32)}, "argument 'parents': expected 2 dimensions, got 1"),
        (
            {"counts": torch.zeros(3, dtype=torch.int32)},
            "argument 'counts': expected shape [2] (B of parents), got [3]",
        ),
        ({"parents": torch.zeros(2, 257, dtype=torch.int32)}, "argument 'parents': expected N in [1, 256], got 257"),
        ({"parents": torch.zeros(2, 0, dtype=torch.int32)}, "argument 'parents': expected N in [1, 256], got 0"),
    ],
)
def test_kernel_and_fake_say_the_same(change: dict[str, Any], words: str) -> None:
    given = {**arguments(), **change}
    with pytest.raises(RuntimeError) as from_kernel:
        LINKS(**given)
    mode = FakeTensorMode()
    with pytest.raises(RuntimeError) as from_fake, mode:
        LINKS(**{name: mode.from_tensor(value) for name, value in given.items()})
    for raised in (from_kernel, from_fake):
        assert str(raised.value).splitlines()[0] == f"tokcore.tree_links: {words}"


def test_one_graph_for_every_shape() -> None:
    def call(parents: Tensor, counts: Tensor) -> Tensor:
        words, depths, first, following = LINKS(parents, counts)
        return words.sum() + (depths + first + following).sum()

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for n in range(3, 9):
        parents = torch.arange(-1, 20 * n - 1, dtype=torch.int32).repeat(n, 1)
        counts = torch.full((n,), 20 * n, dtype=torch.int32)
        assert torch.equal(compiled(parents, counts), call(parents, counts))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2
    torch._dynamo.reset()
