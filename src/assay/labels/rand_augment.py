"""The strong view: two random operations on each image, and a hole."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.labels.views import Cutout, check_images
from assay.represent.augment import GREY
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.random import Draws

Operation = Callable[[Tensor, Tensor], Tensor]  # images (m, c, h, w) in [0, 1] and strengths (m, 1, 1, 1) in [0, 1]


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """``ops`` operations on each image, drawn with their strengths at random, then Cutout (Sohn et al., 2020,
    arXiv:2001.07685, section 2.3 and table 12, after Cubuk et al., 2019, arXiv:1909.13719).

    The fourteen operations are those of table 12, of images in [0, 1]: contrast stretched, brightness, colour and
    contrast at 0.05 to 0.95 of theirs, histogram equalised, nothing, 4 to 8 bits, turns of 30 degrees, sharpness at
    0.05 to 0.95, shears of 0.3 either way, values above a level inverted, shifts of 0.3 either way. Each of equal
    chance. Those of colour leave images of one channel alone. What comes in from outside is black. ``bounds`` is the
    range that the images keep to; ``hole`` the cutout's share of the side, 0 for none. Input as of Shift.
    """

    kind: ClassVar[str] = "function"

    ops: int = 2
    hole: float = 0.5
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if self.ops < 0 or not 0 <= self.hole <= 1 or not self.bounds[0] < self.bounds[1]:
            raise InputError(
                f"RandAugment: ops={self.ops}, hole={self.hole}, bounds={self.bounds}; expected ops >= 0, a share in "
                "[0, 1] and low < high"
            )

    def __call__(self, x: Float[Tensor, "n c h w"], draws: Draws) -> Float[Tensor, "n c h w"]:
        check_images("RandAugment", x, draws)
        check_inputs("RandAugment", x, bounds=self.bounds)
        low, high = self.bounds
        view = ((x - low) / (high - low)).clamp(0, 1)
        for _ in range(self.ops):
            view = _changed(view, draws.integers(len(OPERATIONS), 1)[:, 0], draws.uniform(1, 1, 1).to(x))
        if self.hole:
            view = Cutout(share=self.hole)(view, draws)
        return low + (high - low) * view


def _changed(x: Tensor, chosen: Tensor, strength: Tensor) -> Tensor:
    """Each image after the operation chosen for it."""
    out = x.clone()
    for k, operation in enumerate(OPERATIONS.values()):
        rows = (chosen == k).nonzero()[:, 0].to(x.device)
        if len(rows):
            out[rows] = operation(x[rows], strength[rows]).clamp(0, 1)
    return out


def _blend(x: Tensor, other: Tensor, strength: Tensor) -> Tensor:
    """``other`` with 0.05 to 0.95 of ``x`` in it."""
    return other + (0.05 + 0.9 * strength) * (x - other)


def _grey(x: Tensor) -> Tensor:
    return (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True) if x.shape[1] == 3 else x


def _autocontrast(x: Tensor, strength: Tensor) -> Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    return torch.where(high > low, (x - low) / (high - low).clamp_min(1e-6), x)


def _brightness(x: Tensor, strength: Tensor) -> Tensor:
    return _blend(x, torch.zeros_like(x), strength)


def _color(x: Tensor, strength: Tensor) -> Tensor:
    return _blend(x, _grey(x), strength)


def _contrast(x: Tensor, strength: Tensor) -> Tensor:
    return _blend(x, _grey(x).mean((1, 2, 3), keepdim=True), strength)


def _equalize(x: Tensor, strength: Tensor) -> Tensor:
    """Each channel's value becomes its share of smaller or equal ones, the least value 0."""
    flat = x.flatten(2).contiguous()
    share = torch.searchsorted(flat.sort(2).values, flat, right=True) / flat.shape[2]
    least = share.amin(2, keepdim=True)
    even = torch.where(least < 1, (share - least) / (1 - least).clamp_min(1e-6), flat)
    return even.view_as(x)


def _identity(x: Tensor, strength: Tensor) -> Tensor:
    return x


def _posterize(x: Tensor, strength: Tensor) -> Tensor:
    """The first 4 to 8 bits of 8."""
    step = 2.0 ** (4 - (5 * strength).floor().clamp(max=4))
    return ((255 * x).round() / step).floor() * step / 255


def _solarize(x: Tensor, strength: Tensor) -> Tensor:
    return torch.where(x < strength, x, 1 - x)


def _sharpness(x: Tensor, strength: Tensor) -> Tensor:
    """Between the image smoothed inside its border and itself."""
    kernel = x.new_tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    if min(x.shape[2:]) < 3:
        return x
    smooth = x.clone()
    inner = F.conv2d(x, kernel.expand(x.shape[1], 1, 3, 3), groups=x.shape[1])
    smooth[:, :, 1:-1, 1:-1] = inner
    return _blend(x, smooth, strength)


def _moved(x: Tensor, matrix: list[Tensor]) -> Tensor:
    """``x`` seen through maps [[a, b, dx], [c, d, dy]] of the square [-1, 1]^2, black outside."""
    grid = F.affine_grid(torch.stack(matrix, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _turned(x: Tensor, strength: Tensor) -> Tensor:
    angle = math.radians(30) * (2 * strength.flatten() - 1)
    zero, ratio = torch.zeros_like(angle), x.shape[2] / x.shape[3]
    return _moved(x, [angle.cos(), -angle.sin() * ratio, zero, angle.sin() / ratio, angle.cos(), zero])


def _affine(place: int, scale: float) -> Operation:
    """The identity with entry ``place`` of its matrix moved by up to 0.3 ``scale`` either way."""

    def move(x: Tensor, strength: Tensor) -> Tensor:
        amount = 0.3 * (2 * strength.flatten() - 1)
        one, zero = torch.ones_like(amount), torch.zeros_like(amount)
        matrix = [one, zero, zero, zero, one, zero]
        matrix[place] = scale * amount
        return _moved(x, matrix)

    return move


OPERATIONS: dict[str, Operation] = {
    "autocontrast": _autocontrast,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "identity": _identity,
    "posterize": _posterize,
    "rotate": _turned,
    "sharpness": _sharpness,
    "shear-x": _affine(1, 1.0),
    "shear-y": _affine(3, 1.0),
    "solarize": _solarize,
    "translate-x": _affine(2, 2.0),  # the square has sides of 2
    "translate-y": _affine(5, 2.0),
}
