"""A real picture becomes a video: panned and zoomed, with noise; cut into patches and put together again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# Where the camera looks at the first and at the last frame: centre (x, y) and width of the view, in picture widths.
FIRST_VIEW = (0.56, 0.38, 0.80)
LAST_VIEW = (0.46, 0.26, 0.46)


def load_picture() -> Tensor:
    """[3, 512, 512] in [0, 1]: scikit-image's photograph of the astronaut Eileen Collins (NASA, public domain)."""
    from skimage import data

    pixels = data.astronaut()  # type: ignore[no-untyped-call]
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255.0


def film(picture: Tensor, grid: Sequence[int], patch: int) -> Tensor:
    """[F, 3, H·patch, W·patch]: a camera that pans and zooms over the picture [3, height, width]."""
    frames, height, width = grid[0], grid[1] * patch, grid[2] * patch
    soft = F.avg_pool2d(picture.unsqueeze(0), 3, stride=1, padding=1, count_include_pad=False)
    rows = (torch.arange(height) + 0.5 - height / 2) / width
    columns = (torch.arange(width) + 0.5 - width / 2) / width
    taken = []
    for number in range(frames):
        part = number / max(1, frames - 1)
        ease = 0.5 - 0.5 * math.cos(math.pi * part)
        x, y, view = (a + (b - a) * ease for a, b in zip(FIRST_VIEW, LAST_VIEW, strict=True))
        place = torch.stack(torch.meshgrid(y + rows * view, x + columns * view, indexing="ij")[::-1], -1)
        taken.append(F.grid_sample(soft, 2 * place.unsqueeze(0) - 1, align_corners=False, padding_mode="reflection"))
    return torch.cat(taken).clamp(0, 1)


def add_noise(frames: Tensor, sigma: float, seed: int) -> Tensor:
    """Gaussian noise of standard deviation ``sigma``, on every frame anew; values are not clipped."""
    generator = torch.Generator().manual_seed(seed)
    return frames + sigma * torch.randn(frames.shape, generator=generator)


def to_patches(frames: Tensor, patch: int) -> Tensor:
    """[F, 3, H·p, W·p] -> [F·H·W, 3·p²]: orthonormal cosine coefficients, those of long waves first.

    Colours are turned into brightness and two differences by an orthonormal matrix, so that noise stays what it was.
    """
    count, _, height, width = frames.shape
    blocks = frames.view(count, 3, height // patch, patch, width // patch, patch).permute(0, 2, 4, 1, 3, 5)
    basis = _cosines(patch)
    turned = torch.einsum("cd,fhwdyx,ky,lx->fhwckl", _colors(), blocks, basis, basis)
    return turned.reshape(-1, 3 * patch * patch)[:, _order(patch)]


def to_frames(patches: Tensor, grid: Sequence[int], patch: int) -> Tensor:
    """The inverse of :func:`to_patches`; coefficients that are missing at the end are 0."""
    whole = torch.zeros(patches.size(0), 3 * patch * patch)
    whole[:, _order(patch)[: patches.size(1)]] = patches.float()
    basis = _cosines(patch)
    turned = whole.view(*grid, 3, patch, patch)
    blocks = torch.einsum("cd,fhwckl,ky,lx->fhwdyx", _colors(), turned, basis, basis)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(grid[0], 3, grid[1] * patch, grid[2] * patch)


def psnr(frames: Tensor, clean: Tensor) -> float:
    """Peak signal-to-noise ratio of pictures with values in [0, 1], in dB."""
    error = float((frames.clamp(0, 1) - clean).square().mean(dtype=torch.float64))
    return math.inf if error == 0 else -10.0 * math.log10(error)


def _cosines(size: int) -> Tensor:
    """[size, size]: row k is the orthonormal cosine of k half waves."""
    place = (torch.arange(size, dtype=torch.float64) + 0.5) * math.pi / size
    rows = (torch.arange(size, dtype=torch.float64).unsqueeze(1) * place).cos() * math.sqrt(2.0 / size)
    rows[0] /= math.sqrt(2.0)
    return rows.to(torch.float32)


def _colors() -> Tensor:
    """[3, 3]: rows brightness, red less blue, green less the others; orthonormal."""
    rows = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]])
    lengths: Tensor = rows.square().sum(1, keepdim=True).sqrt()
    return rows / lengths


def _order(patch: int) -> Tensor:
    """int64 [3·p²]: coefficients [3, p, p] by rising wave number, colour waves counted as twice as short."""
    waves = torch.arange(patch)
    number = (waves.unsqueeze(1) + waves).expand(3, patch, patch).clone()
    number[1:] = 2 * number[1:] + 1
    return number.flatten().argsort(stable=True)
