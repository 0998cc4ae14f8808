"""A plan: which order and which blocks each head of a model uses at each step, and what that costs in quality."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from tokcore.block_mask import BlockMask
from tokcore.ops import _checks as checks
from tokcore.permutation import AXES

CLASSES = ("dense", "sparse", "empty")
"""Classes of heads: all blocks kept, some, none but those with text. :attr:`ParoPlan.head_class` holds indices."""
DENSE, SPARSE, EMPTY = range(3)


@dataclass(frozen=True, eq=False)
class ParoPlan:
    """Orders of tokens, block masks and their quality for S groups of steps, L layers and H heads.

    Made by :func:`tokcore.calibrate_paro`; kept by :meth:`save` and :meth:`load`.

    Attributes:
        grid: (F, H, W) tokens. text: tokens before and after. block: (bm, bn).
        layers: L names.
        steps: S first steps, rising: group g holds the steps from ``steps[g]`` to before ``steps[g + 1]``, the last
            group all that follow; steps before the first belong to group 0.
        step_counts: int64 [S]: sampled steps in each group.
        permutations: int32 [S, L, H]: codes 0 to 5, see ``tokcore.permutation``.
        mask_index: int32 [S, L, H]: each head's row of ``masks``.
        masks: int32 [U, ceil(N/bm), words]: the distinct masks, in permuted order, as :class:`tokcore.BlockMask` packs.
        head_class: int32 [S, L, H]: index into :data:`CLASSES`.
        density: float32 [S, L, H]: share of blocks that the head computes.
        recall: float32 [S, L, H]: share of the attention that those blocks hold.
        psnr: float32 [S, L, H]: of the head's sparse output against its dense one, in dB; inf where they are equal, NaN
            where there was no v.
        sparse_score, quantization_score: float32 [S, L, H, 6]: what the orders were chosen by.
        requested_density: the density asked for. alpha: weight of the sparse score.
        tokcore_version: of the library that made the plan.
    """

    grid: tuple[int, int, int]
    text: tuple[int, int]
    block: tuple[int, int]
    layers: tuple[str, ...]
    steps: tuple[int, ...]
    step_counts: Tensor
    permutations: Tensor
    mask_index: Tensor
    masks: Tensor
    head_class: Tensor
    density: Tensor
    recall: Tensor
    psnr: Tensor
    sparse_score: Tensor
    quantization_score: Tensor
    requested_density: float
    alpha: float
    tokcore_version: str

    @property
    def num_tokens(self) -> int:
        """N, text included."""
        return self.grid[0] * self.grid[1] * self.grid[2] + sum(self.text)

    @property
    def num_heads(self) -> int:
        """H of every layer."""
        return self.permutations.size(2)

    @property
    def predicted_density(self) -> float:
        """Share of blocks computed over all sampled steps, layers and heads: the cost relative to dense attention."""
        weights = self.step_counts.double() / self.step_counts.sum()
        return float((self.density.double().mean((1, 2)) * weights).sum())

    def group(self, step: int) -> int:
        """The group that a step belongs to."""
        checks.check_count(checks.wrapper_require("ParoPlan"), "step", step, 0, 2**31 - 1, "steps")
        return max(0, bisect.bisect_right(self.steps, step) - 1)

    def layer(self, name: str | int) -> int:
        """The index of a layer, by name."""
        require = checks.wrapper_require("ParoPlan")
        require(
            str(name) in self.layers,
            "layer",
            lambda: f"one of {', '.join(self.layers[:8])}{', ...' if len(self.layers) > 8 else ''}",
            lambda: f"{name}",
        )
        return self.layers.index(str(name))

    def permutation(self, step: int, layer: str | int) -> Tensor:
        """int32 [H]: the order of each head's tokens."""
        return self.permutations[self.group(step), self.layer(layer)]

    def mask(self, step: int, layer: str | int) -> BlockMask:
        """The heads' masks in permuted order: of one batch entry and H heads."""
        index = self.mask_index[self.group(step), self.layer(layer)].long()
        return BlockMask(self.masks[index].unsqueeze(0), self.block, shape=(self.num_tokens, self.num_tokens))

    def check_model(
        self,
        *,
        layers: Sequence[str | int] | None = None,
        num_heads: int | None = None,
        grid: Sequence[int] | None = None,
        text: Sequence[int] | None = None,
    ) -> None:
        """Raise ``ValueError`` unless the plan was made for such a model; None is not compared."""
        require = checks.wrapper_require("ParoPlan.check_model")
        if layers is not None:
            names = [str(name) for name in layers]
            missing = [name for name in names if name not in self.layers]
            require(
                not missing and len(names) == len(self.layers),
                "layers",
                lambda: f"the {len(self.layers)} layers of the plan ({self.layers[0]} to {self.layers[-1]})",
                lambda: f"{len(names)}" + (f", of which {missing[0]} is not in the plan" if missing else ""),
            )
        given = (("num_heads", num_heads, self.num_heads), ("grid", grid, self.grid), ("text", text, self.text))
        for name, value, mine in given:
            if value is not None:
                found = value if isinstance(value, int) else tuple(value)
                require(found == mine, name, lambda mine=mine: f"{mine} of the plan", lambda found=found: f"{found}")  # type: ignore[misc]

    def save(self, path: Path | str) -> Path:
        """Write the plan as a safetensors file with a checksum. Needs the package safetensors."""
        from tokcore.paro.plan_file import save_plan

        return save_plan(self, Path(path))

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        layers: Sequence[str | int] | None = None,
        num_heads: int | None = None,
        grid: Sequence[int] | None = None,
        text: Sequence[int] | None = None,
    ) -> ParoPlan:
        """Read a plan; the file is parsed and checked, never executed. Needs the package safetensors.

        Args:
            path: what :meth:`save` wrote.
            layers, num_heads, grid, text: what the model has, see :meth:`check_model`.

        Raises:
            FileNotFoundError: no such file. ValueError: a truncated or corrupt file, one of another version, or a plan
            of another model's shape.
        """
        from tokcore.paro.plan_file import load_plan

        plan = load_plan(Path(path))
        plan.check_model(layers=layers, num_heads=num_heads, grid=grid, text=text)
        return plan

    def __repr__(self) -> str:
        groups, layers, heads = self.permutations.shape
        return (
            f"ParoPlan(grid={self.grid}, text={self.text}, block={self.block}, step groups={groups}, layers={layers}, "
            f"heads={heads}, distinct masks={self.masks.size(0)}, predicted density={self.predicted_density:.3f})"
        )


def check_plan(plan: ParoPlan, require: checks.Require) -> None:
    """What holds of every plan: shapes that fit one another, codes and indices in their ranges."""
    groups, layers, heads = len(plan.steps), len(plan.layers), plan.permutations.size(-1)
    rising = groups > 0 and plan.steps[0] >= 0 and all(a < b for a, b in zip(plan.steps, plan.steps[1:], strict=False))
    require(rising, "steps", lambda: "steps that rise from 0 or more", lambda: f"{plan.steps}")
    unique = layers > 0 and len(set(plan.layers)) == layers
    require(unique, "layers", lambda: "one or more distinct names", lambda: f"{plan.layers}")
    rows, columns = -(-plan.num_tokens // plan.block[0]), -(-plan.num_tokens // plan.block[1])
    of_heads = (groups, layers, heads)
    shapes = {
        "step_counts": (groups,),
        **dict.fromkeys(("permutations", "mask_index", "head_class", "density", "recall", "psnr"), of_heads),
        **dict.fromkeys(("sparse_score", "quantization_score"), (*of_heads, len(AXES))),
        "masks": (plan.masks.size(0), rows, -(-columns // 32)),
    }
    for name, shape in shapes.items():
        found = tuple(getattr(plan, name).shape)
        require(found == shape, name, lambda s=shape: f"shape {checks.sizes(s)}", lambda f=found: checks.sizes(f))  # type: ignore[misc]
    bounds = {
        "step_counts": (1, 2**31 - 1),
        "permutations": (0, len(AXES) - 1),
        "mask_index": (0, plan.masks.size(0) - 1),
        "head_class": (0, len(CLASSES) - 1),
        "density": (0, 1),
    }
    for name, (low, high) in bounds.items():
        values = getattr(plan, name)
        if values.numel() == 0:
            continue
        least, most = (value.item() for value in torch.aminmax(values))
        require(
            low <= least and most <= high,
            name,
            lambda low=low, high=high: f"values in [{low}, {high}]",  # type: ignore[misc]
            lambda least=least, most=most: f"values in [{least}, {most}]",  # type: ignore[misc]
        )
