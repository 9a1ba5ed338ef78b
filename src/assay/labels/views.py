"""Weak views of images, and holes in them: what consistency between two views starts from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.random import Draws


@dataclass(frozen=True, kw_only=True)
class Shift:
    """The weak view: each image moved by whole pixels, and mirrored where asked (Sohn et al., 2020, arXiv:2001.07685,
    section 2.3).

    ``share`` in [0, 1) of the height and width is the largest shift, in either direction, every shift equally likely;
    what comes in is the image reflected. ``flip`` mirrors every second view; the paper's for all but digits.
    ``view(x, draws)``: x (n, c, h, w), a stream of ``draws`` a sample. InputError for other input.
    """

    kind: ClassVar[str] = "function"

    share: float = 0.125
    flip: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise InputError(f"Shift: share={self.share}; expected a share of the side in [0, 1)")

    def __call__(self, x: Float[Tensor, "n c h w"], draws: Draws) -> Float[Tensor, "n c h w"]:
        check_images("Shift", x, draws)
        u = draws.uniform(3).to(x.device)
        places = [self._places(side, u[:, k]) for k, side in enumerate(x.shape[2:])]
        if self.flip:
            places[1] = torch.where(u[:, 2:] < 0.5, places[1].flip(1), places[1])
        rows = torch.arange(len(x), device=x.device)[:, None, None, None]
        channels = torch.arange(x.shape[1], device=x.device)[:, None, None]
        return x[rows, channels, places[0][:, None, :, None], places[1][:, None, None, :]]

    def _places(self, side: int, u: Float[Tensor, " n"]) -> Int[Tensor, "n side"]:
        """Where each pixel of a line comes from."""
        most = int(self.share * side)
        moved = (u * (2 * most + 1)).long() - most
        places = (torch.arange(side, device=u.device) - moved[:, None]).abs()
        return torch.minimum(places, 2 * (side - 1) - places)


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """A grey square over each image (DeVries & Taylor, 2017, arXiv:1708.04552).

    ``share`` in (0, 1] of the shorter side is its edge, in whole pixels; its centre is uniform over the
    image, where it is cut off. ``fill`` is its value. Input as of Shift.
    """

    kind: ClassVar[str] = "function"

    share: float = 0.5
    fill: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise InputError(f"Cutout: share={self.share}; expected a share of the side in (0, 1]")

    def __call__(self, x: Float[Tensor, "n c h w"], draws: Draws) -> Float[Tensor, "n c h w"]:
        check_images("Cutout", x, draws)
        edge = max(round(self.share * min(x.shape[2:])), 1)
        u = draws.uniform(2).to(x.device)
        inside = []
        for k, side in enumerate(x.shape[2:]):
            first = (u[:, k : k + 1] * side).long() - edge // 2
            place = torch.arange(side, device=x.device)
            inside.append((place >= first) & (place < first + edge))
        hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return x.masked_fill(hole, self.fill)


def check_images(where: str, x: Tensor, draws: Draws) -> None:
    """InputError unless ``x`` are images (n, c, h, w) with n streams of ``draws``."""
    check_inputs(where, x)
    if x.dim() != 4 or len(draws.index) != len(x):
        raise InputError(
            f"{where}: x {tuple(x.shape)}, {len(draws.index)} streams; expected images (n, c, h, w) and n streams"
        )
