"""Random views of images, a draw for each sample, with a gradient back to the image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.random import Draws

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma
# RGB to luma and two axes of colour (YIQ): a turn of hue is a rotation of the latter
YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Views as contrastive learning takes them (Chen et al., 2020, arXiv:2002.05709, appendix A).

    ``scale`` is the range of the share of the area that a random crop keeps, its sides in a ratio of at most ``ratio``
    drawn evenly in the logarithm, resized back; ``rotation`` the largest turn in degrees; ``flip`` mirrors every second
    view. With probability ``jitter`` brightness, contrast and saturation are multiplied by 1 +- ``strength`` at most
    and hue turned by ``hue`` of a circle at most, in this order; with probability ``grayscale`` the colour goes.
    ``noise`` is the deviation of Gaussian noise. Colours are in [0, 1]; the result is cut to ``bounds``.

    Images of one channel have no saturation, hue or grayscale. Flips, strong crops or colour where they change the
    label make the views useless: choose by data set. Raises InputError for options out of range.
    """

    kind: ClassVar[str] = "function"

    scale: tuple[float, float] = (0.2, 1.0)
    ratio: float = 4 / 3
    rotation: float = 0.0
    flip: bool = True
    jitter: float = 0.8
    strength: float = 0.4
    hue: float = 0.1
    grayscale: float = 0.2
    noise: float = 0.0
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        low, high = self.scale
        shares = (self.jitter, self.grayscale, self.strength)
        if not 0 < low <= high <= 1 or min(shares) < 0 or max(shares) > 1 or not 0 <= self.hue <= 0.5:
            given = f"scale={self.scale}, jitter={self.jitter}, strength={self.strength}, hue={self.hue}"
            raise InputError(f"Augmentation: {given}; expected 0 < low <= high <= 1, shares in [0, 1], hue <= 0.5")
        if self.noise < 0 or self.rotation < 0 or self.ratio < 1 or not self.bounds[0] < self.bounds[1]:
            given = f"noise={self.noise}, rotation={self.rotation}, ratio={self.ratio}, bounds={self.bounds}"
            raise InputError(f"Augmentation: {given}; expected numbers >= 0, ratio >= 1 and low < high")

    def __call__(self, x: Float[Tensor, "n c h w"], draws: Draws) -> Float[Tensor, "n c h w"]:
        """One view of each image, by its own stream of ``draws``."""
        check_inputs("Augmentation", x)
        if x.dim() != 4 or len(draws.index) != len(x):
            shape = tuple(x.shape)
            raise InputError(
                f"Augmentation: x {shape}, {len(draws.index)} streams; expected (n, c, h, w) and n streams"
            )
        u = draws.uniform(12).to(x)
        low, high = self.bounds
        view = (self._moved(x, u[:, :6]) - low) / (high - low)
        view = self._coloured(view, u[:, 6:]) * (high - low) + low
        if self.noise:
            view = view + self.noise * draws.normal(*x.shape[1:]).to(x)
        return view.clamp(low, high)

    def _moved(self, x: Tensor, u: Float[Tensor, "n 6"]) -> Tensor:
        """Crop, turn and mirror in one map, read bilinearly; the borders are repeated."""
        area = self.scale[0] + (self.scale[1] - self.scale[0]) * u[:, 0]
        log_ratio = (2 * u[:, 1] - 1) * math.log(self.ratio)
        width = (area.sqrt() * (log_ratio / 2).exp()).clamp(max=1)
        height = (area.sqrt() * (-log_ratio / 2).exp()).clamp(max=1)
        angle = (2 * u[:, 2] - 1) * math.radians(self.rotation)
        mirror = torch.where(u[:, 3] < 0.5, -1.0, 1.0).to(x) if self.flip else torch.ones_like(angle)
        across, down = (1 - width) * (2 * u[:, 4] - 1), (1 - height) * (2 * u[:, 5] - 1)
        cos, sin = angle.cos(), angle.sin()
        rows = (
            torch.stack((mirror * width * cos, -height * sin, across), 1),
            torch.stack((mirror * width * sin, height * cos, down), 1),
        )
        grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)

    def _coloured(self, x: Tensor, u: Float[Tensor, "n 6"]) -> Tensor:
        wide = u[:, :, None, None, None]
        factor = 1 + self.strength * (2 * wide[:, :3] - 1)
        luma = (x * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True) if x.shape[1] == 3 else x
        changed = x * factor[:, 0]
        centre = (luma * factor[:, 0]).mean((1, 2, 3), keepdim=True)
        changed = centre + factor[:, 1] * (changed - centre)
        if x.shape[1] == 3:
            grey = (changed * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True)
            changed = self._turned(grey + factor[:, 2] * (changed - grey), u[:, 3])
        view = torch.where(wide[:, 4] < self.jitter, changed, x)
        if x.shape[1] == 3:
            grey = (view * x.new_tensor(GREY)[:, None, None]).sum(1, keepdim=True).expand_as(view)
            view = torch.where(wide[:, 5] < self.grayscale, grey, view)
        return view

    def _turned(self, x: Float[Tensor, "n 3 h w"], u: Float[Tensor, " n"]) -> Tensor:
        """Hue turned: a rotation of the two axes of colour, which keeps the luma."""
        angle = 2 * math.pi * self.hue * (2 * u - 1)
        there = x.new_tensor(YIQ)
        cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
        turn = torch.stack((one, zero, zero, zero, cos, -sin, zero, sin, cos), 1).reshape(-1, 3, 3)
        return torch.einsum("nij,njhw->nihw", torch.linalg.inv(there) @ turn @ there, x)
