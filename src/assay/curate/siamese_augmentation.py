"""Augmentation of distilled images: one random operation for a whole batch, with a gradient back to the images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError, unknown
from assay.runtime.random import Draws

OPERATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


@dataclass(frozen=True, kw_only=True)
class SiameseAugmentation:
    """``augment(x, draws)`` -> (n, c, h, w) for images of any range (Zhao & Bilen, 2021, arXiv:2102.08259, section 3.2,
    "DSA"; ranges of the official code).

    One of ``operations`` is drawn for the batch: "color" adds up to ``brightness`` / 2 either way, multiplies what
    differs from the mean over channels by up to ``saturation`` (not on one channel) and what differs from the image's
    mean by ``contrast`` to ``contrast`` + 1; "crop" shifts by up to the share ``shift`` of a side, zeros coming in;
    "cutout" sets a window of the share ``cutout`` of the sides to 0; "flip" mirrors with probability 1/2; "scale"
    stretches each axis by 1 / ``ratio`` to ``ratio``; "rotate" turns by up to ``degrees``. ``shared``: all images get
    the same values, as the name says; else, as trajectory matching's code calls it, each its own.
    """

    kind: ClassVar[str] = "function"

    operations: tuple[str, ...] = OPERATIONS
    brightness: float = 1.0
    saturation: float = 2.0
    contrast: float = 0.5
    shift: float = 0.125
    cutout: float = 0.5
    ratio: float = 1.2
    degrees: float = 15.0
    shared: bool = True

    def __post_init__(self) -> None:
        for name in self.operations:
            if name not in OPERATIONS:
                raise unknown("operation of SiameseAugmentation", name, OPERATIONS)
        sizes = (self.brightness, self.saturation, self.contrast, self.shift, self.cutout, self.degrees)
        if not self.operations or min(sizes) < 0 or max(self.shift, self.cutout) > 1 or self.ratio < 1:
            raise InputError(
                f"SiameseAugmentation: {len(self.operations)} operations, sizes {sizes}, ratio={self.ratio}; expected "
                "at least one, sizes >= 0, shares <= 1, ratio >= 1"
            )

    def __call__(self, x: Float[Tensor, "n c h w"], draws: Draws) -> Float[Tensor, "n c h w"]:
        """The images under the operation that the first stream draws."""
        check_inputs("SiameseAugmentation", x)
        if x.dim() != 4 or len(draws.index) != len(x):
            raise InputError(f"SiameseAugmentation: x {tuple(x.shape)}; expected (n, c, h, w) and a stream for each")
        u = draws.uniform(4).to(x)
        u = u[:1].expand(len(x), -1) if self.shared else u
        name = self.operations[int(u[0, 0] * len(self.operations))]
        v = 2 * u[:, 1:] - 1
        if name == "color":
            return self._coloured(x, v)
        if name == "cutout":
            return x * self._window(x, u)
        return self._moved(x, v, name)

    def _coloured(self, x: Tensor, v: Float[Tensor, "n 3"]) -> Tensor:
        light, rich, far = (t[:, None, None, None] for t in v.unbind(1))
        x = x + light * self.brightness / 2
        if x.shape[1] > 1:
            grey = x.mean(1, keepdim=True)
            x = (x - grey) * self.saturation * (rich + 1) / 2 + grey
        mean = x.mean((1, 2, 3), keepdim=True)
        return (x - mean) * (self.contrast + (far + 1) / 2) + mean

    def _window(self, x: Tensor, u: Float[Tensor, "n 4"]) -> Float[Tensor, "n 1 h w"]:
        """0 inside each image's window, whose centre lies anywhere, 1 outside."""
        inside = []
        for size, share in zip(x.shape[2:], (u[:, 1], u[:, 2]), strict=True):
            place = torch.arange(size, device=x.device) + 0.5
            inside.append((place - share[:, None] * size).abs() <= self.cutout * size / 2)
        return 1 - (inside[0][:, None, :, None] & inside[1][:, None, None, :]).to(x)

    def _moved(self, x: Tensor, v: Float[Tensor, "n 3"], name: str) -> Tensor:
        """One affine map of the plane, read bilinearly, zeros outside."""
        one, zero = torch.ones_like(v[:, 0]), torch.zeros_like(v[:, 0])
        rows = (one, zero, zero, zero, one, zero)
        if name == "crop":
            rows = (one, zero, 2 * self.shift * v[:, 0], zero, one, 2 * self.shift * v[:, 1])
        elif name == "flip":
            rows = (torch.where(v[:, 0] < 0, -one, one), zero, zero, zero, one, zero)
        elif name == "scale":
            wide, high = (self.ratio ** v[:, k] for k in (0, 1))
            rows = (wide, zero, zero, zero, high, zero)
        elif name == "rotate":
            angle = math.radians(self.degrees) * v[:, 0]
            rows = (angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero)
        grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)
