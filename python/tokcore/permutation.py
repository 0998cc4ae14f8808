"""Orders of the tokens of a video: the one definition that attention, calibration and their references share.

Tokens in reading order stand at n = text[0] + (f·H + h)·W + w on a grid (F, H, W), with text tokens before and after.
A code names the order in which the axes are nested, the slowest first:

=====  ===========  ==================================
code   axes         neighbours in the sequence
=====  ===========  ==================================
0      F, H, W      along the width (the reading order)
1      F, W, H      along the height
2      H, W, F      along time
3      H, F, W      along the width
4      W, H, F      along time
5      W, F, H      along the height
=====  ===========  ==================================

Text tokens stay where they are. An image is a grid of one frame.
Source: PAROAttention (arXiv 2506.16054).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tokcore.ops import _checks as checks

AXES = ((0, 1, 2), (0, 2, 1), (1, 2, 0), (1, 0, 2), (2, 1, 0), (2, 0, 1))
"""The axes of a grid (F, H, W) by permutation code, the slowest first."""

NAMES = tuple("".join("FHW"[axis] for axis in axes) for axes in AXES)
"""``("FHW", "FWH", "HWF", "HFW", "WHF", "WFH")``: how the codes are printed."""


def check_grid(require: checks.Require, grid: object, text: object = (0, 0)) -> int:
    """``grid`` is (F, H, W), ``text`` the numbers of tokens before and after; returns the number of all tokens."""
    three = _ints(grid, 3)
    require(three, "grid", lambda: "(F, H, W), three ints", lambda: f"{grid}", TypeError)
    require(_ints(text, 2), "text", lambda: "(before, after), two ints", lambda: f"{text}", TypeError)
    assert isinstance(grid, Sequence)
    assert isinstance(text, Sequence)
    require(min(grid) >= 1, "grid", lambda: "(F, H, W) with sizes >= 1", lambda: f"{tuple(grid)}")
    require(min(text) >= 0, "text", lambda: "(before, after), two ints >= 0", lambda: f"{tuple(text)}")
    return int(math.prod(grid)) + int(text[0]) + int(text[1])


def check_code(require: checks.Require, code: object, name: str = "code") -> None:
    """``code`` is a permutation code, 0 to 5."""
    is_code = isinstance(code, int) and not isinstance(code, bool)
    require(is_code, name, lambda: "an int", lambda: type(code).__name__, TypeError)
    require(0 <= code < len(AXES), name, lambda: "a permutation code in [0, 5]", lambda: f"{code}")  # type: ignore[operator]


def permutation_indices(
    code: int, grid: Sequence[int], text: Sequence[int] = (0, 0), device: torch.device | str = "cpu"
) -> Tensor:
    """int64 [N]: the token in reading order that stands at each place of the order ``code``.

    ``x[..., permutation_indices(code, grid, text), :]`` reorders tokens; :func:`inverse_permutation` leads back.

    Args:
        code: 0 to 5, see the module.
        grid: (F, H, W) tokens; N = text[0] + F·H·W + text[1].
        text: tokens before and after the grid, which keep their places.
        device: where the indices will be.

    Raises:
        TypeError: a wrong type. ValueError: a code outside 0 to 5, an empty grid or negative text.
    """
    require = checks.wrapper_require("permutation_indices")
    length = check_grid(require, grid, text)
    check_code(require, code)
    before = text[0]
    inner = torch.arange(before, length - text[1], device=device).view(tuple(grid)).permute(AXES[code]).flatten()
    ends = (torch.arange(before, device=device), torch.arange(length - text[1], length, device=device))
    return torch.cat((ends[0], inner, ends[1]))


def inverse_permutation(indices: Tensor) -> Tensor:
    """int64 [..., N]: the places of the tokens, so that ``x[indices][inverse_permutation(indices)]`` is x."""
    places = torch.arange(indices.size(-1), device=indices.device).expand(indices.shape)
    return torch.empty_like(indices).scatter_(-1, indices, places)


def permute_mask(elements: Tensor, indices: Tensor) -> Tensor:
    """Rows and columns of an attention matrix in the order ``indices``.

    Attention of reordered q and k under the reordered mask is the reordered attention. With the inverse of the indices
    a mask given in permuted order, such as ``BlockMask.to_elements()``, is brought to reading order.

    Args:
        elements: [..., N, N], of any dtype: a mask, or weights.
        indices: int64 [N], or [H, N] with one order for each head of ``elements`` [..., H, N, N].

    Raises:
        ValueError: a wrong rank or shape.
    """
    require = checks.wrapper_require("permute_mask")
    N = indices.size(-1)
    require(indices.dim() in (1, 2), "indices", lambda: "1 or 2 dimensions", lambda: f"{indices.dim()}")
    require(
        elements.dim() > indices.dim() and tuple(elements.shape[-2:]) == (N, N),
        "elements",
        lambda: f"shape [..., {N}, {N}] (N of indices)",
        lambda: checks.sizes(elements.shape),
    )
    if indices.dim() == 1:
        return elements.index_select(-2, indices).index_select(-1, indices)
    heads = indices.size(0)
    require(
        elements.size(-3) in (1, heads),
        "elements",
        lambda: f"1 or {heads} heads (of indices)",
        lambda: f"{elements.size(-3)}",
    )
    spread = elements.expand(*elements.shape[:-3], heads, N, N)
    rows = spread.gather(-2, indices.unsqueeze(-1).expand(spread.shape))
    return rows.gather(-1, indices.unsqueeze(-2).expand(spread.shape))


def _ints(value: object, count: int) -> bool:
    listed = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == count
    return listed and all(isinstance(n, int) and not isinstance(n, bool) for n in value)  # type: ignore[attr-defined]
