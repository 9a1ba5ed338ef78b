"""Common corruptions of images, in five severities that scale with the image.

The families of Hendrycks & Dietterich (2019, arXiv:1903.12261, section 3) that make sense for small images; weather
needs a scene and is left out. Lengths are fractions of the image's shorter side, so that 8x8 and 224x224 are harmed
alike. Every draw belongs to a named sample: batches do not matter, and a sample keeps its draws (the direction of a
shift, the field of noise) from one severity to the next.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.data.filters import convolved, gaussian_blur, jpeg, quantised
from assay.runtime.checks import check_inputs
from assay.runtime.errors import InputError
from assay.runtime.random import Draws

Family = Literal["noise", "blur", "photometric", "digital", "geometric"]
SEVERITIES = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Corruption:
    """One way to spoil an image. ``rule(u, strength, draws)`` works on u (n, c, h, w) in [0, 1]; ``strengths`` has one
    number for each severity 1 to 5.
    """

    name: str
    family: Family
    strengths: tuple[float, float, float, float, float]
    rule: Callable[[Tensor, float, Draws], Tensor]

    def apply(
        self, x: Float[Tensor, "n c h w"], severity: int, draws: Draws, bounds: tuple[float, float] = (0.0, 1.0)
    ) -> Float[Tensor, "n c h w"]:
        """``x`` corrupted, in its shape, dtype and ``bounds``. ``draws`` names its samples and is moved on."""
        where = f"corruption {self.name!r}"
        check_inputs(where, x, bounds=bounds)
        if x.dim() != 4 or min(x.shape[2:]) < 4:
            raise InputError(f"{where}: x has shape {tuple(x.shape)}; expected images (n, c, h, w) of at least 4x4")
        if severity not in SEVERITIES:
            raise InputError(f"{where}: severity {severity!r}; expected 1 to 5")
        if len(draws.index) != len(x):
            raise InputError(f"{where}: draws name {len(draws.index)} samples; expected {len(x)}")
        low, high = bounds
        u = self.rule(((x - low) / (high - low)).clamp(0, 1).float(), self.strengths[severity - 1], draws)
        return (low + (high - low) * u.clamp(0, 1)).clamp(low, high).to(x.dtype)


def _side(u: Tensor) -> int:
    return min(u.shape[2:])


def _gaussian_noise(u: Tensor, sigma: float, draws: Draws) -> Tensor:
    return u + sigma * draws.normal(*u.shape[1:])


def _shot_noise(u: Tensor, photons: float, draws: Draws) -> Tensor:
    """Poisson counts at a rate of ``photons`` for white, by inversion of the distribution function."""
    rate = u.double() * photons
    uniform = draws.uniform(*u.shape[1:]).double()
    term = torch.exp(-rate)
    below, count = term.clone(), torch.zeros_like(rate)
    for k in range(1, math.ceil(photons + 8 * photons**0.5) + 8):
        count += uniform > below
        term = term * rate / k
        below += term
    return (count / photons).float()


def _impulse_noise(u: Tensor, amount: float, draws: Draws) -> Tensor:
    """Salt and pepper on ``amount`` of the pixels, all channels at once."""
    where, salt = draws.uniform(1, *u.shape[2:]), draws.uniform(1, *u.shape[2:])
    return torch.where(where < amount, (salt < 0.5).to(u), u)


def _gaussian_blur(u: Tensor, fraction: float, draws: Draws) -> Tensor:
    """Gaussian of standard deviation ``fraction`` of the side."""
    return gaussian_blur(u, fraction * _side(u))


def _defocus_blur(u: Tensor, fraction: float, draws: Draws) -> Tensor:
    """A disk of radius half a pixel and ``fraction`` of the side, its edge smoothed by 9x9 samples a pixel."""
    radius = 0.5 + fraction * _side(u)
    reach = math.ceil(radius - 0.5)
    fine = (torch.arange((2 * reach + 1) * 9, dtype=torch.float64) + 0.5) / 9 - reach - 0.5
    disk = (fine[:, None] ** 2 + fine[None] ** 2 <= radius**2).double()
    kernel = F.avg_pool2d(disk[None, None], 9)[0, 0]
    return convolved(u, kernel / kernel.sum())


def _warp(u: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(u, grid.to(u), mode="bilinear", padding_mode="border", align_corners=False)


def _affine(u: Tensor, matrix: Tensor) -> Tensor:
    """``u`` seen through maps (n, 2, 3) from output to input places, in pixels from the middle."""
    h, w = u.shape[2:]
    half = torch.tensor([w / 2, h / 2, 1.0])  # grid_sample's coordinates run from -1 to 1 over either axis
    return _warp(u, F.affine_grid(matrix * half / half[:2, None], list(u.shape), align_corners=False))


def _shift(dx: Tensor, dy: Tensor) -> Tensor:
    one, zero = torch.ones_like(dx), torch.zeros_like(dx)
    return torch.stack([torch.stack([one, zero, dx], 1), torch.stack([zero, one, dy], 1)], 1)


def _motion_blur(u: Tensor, fraction: float, draws: Draws) -> Tensor:
    """The mean along a straight path of ``fraction`` of the side, in a direction of each sample's own."""
    angle, length = draws.uniform(1)[:, 0] * math.pi, fraction * _side(u)
    count = 2 * math.ceil(length) + 3
    total = torch.zeros_like(u)
    for t in torch.linspace(-0.5, 0.5, count).tolist():
        total += _affine(u, _shift(t * length * angle.cos(), t * length * angle.sin()))
    return total / count


def _brightness(u: Tensor, amount: float, draws: Draws) -> Tensor:
    return u + amount


def _contrast(u: Tensor, factor: float, draws: Draws) -> Tensor:
    mean = u.mean((1, 2, 3), keepdim=True)
    return mean + factor * (u - mean)


def _gamma(u: Tensor, gamma: float, draws: Draws) -> Tensor:
    return u**gamma


def _cells(size: int, edge: float, offset: Float[Tensor, " n"]) -> Float[Tensor, "n size k"]:
    """How much of each pixel of a line lies in each cell of length ``edge``, the first ``offset`` cells early."""
    start = torch.arange(size, dtype=torch.float64)[:, None]
    cell = edge * (torch.arange(math.ceil(size / edge) + 1, dtype=torch.float64) - offset[:, None].double())[:, None]
    return (torch.minimum(start + 1, cell + edge) - torch.maximum(start, cell)).clamp_min(0)


def _pixelate(u: Tensor, fraction: float, draws: Draws) -> Tensor:
    """Averaged over squares with an edge of one pixel and ``fraction`` of the side, laid from a random place."""
    edge, offset = 1 + fraction * _side(u), draws.uniform(2)
    rows, columns = (_cells(size, edge, offset[:, k]) for k, size in enumerate(u.shape[2:]))
    means = [m / m.sum(1, keepdim=True).clamp_min(1e-12) for m in (rows, columns)]
    down = torch.einsum("nhi,nwj,nchw->ncij", *means, u.double())
    return torch.einsum("nhi,nwj,ncij->nchw", rows, columns, down).float()


def _jpeg(u: Tensor, quality: float, draws: Draws) -> Tensor:
    return jpeg(u, int(quality))


def _quantise(u: Tensor, levels: float, draws: Draws) -> Tensor:
    return quantised(u, levels)


def _rotate(u: Tensor, degrees: float, draws: Draws) -> Tensor:
    """By ``degrees`` to the left or to the right."""
    angle = math.radians(degrees) * draws.signs(1)[:, 0]
    zero = torch.zeros_like(angle)
    rows = [torch.stack([angle.cos(), -angle.sin(), zero], 1), torch.stack([angle.sin(), angle.cos(), zero], 1)]
    return _affine(u, torch.stack(rows, 1))


def _translate(u: Tensor, fraction: float, draws: Draws) -> Tensor:
    """By ``fraction`` of the side in any direction."""
    angle, length = draws.uniform(1)[:, 0] * 2 * math.pi, fraction * _side(u)
    return _affine(u, _shift(length * angle.cos(), length * angle.sin()))


def _scale(u: Tensor, amount: float, draws: Draws) -> Tensor:
    """Larger or smaller by the factor exp(``amount``)."""
    factor = torch.exp(amount * draws.signs(1)[:, 0])[:, None, None]
    eye = torch.eye(2, 3).expand(len(u), 2, 3)
    return _affine(u, eye * factor)


def _elastic(u: Tensor, fraction: float, draws: Draws) -> Tensor:
    """A smooth random displacement, ``fraction`` of the side in standard deviation at its 4x4 control points."""
    h, w = u.shape[2:]
    coarse = draws.normal(2, 4, 4) * fraction * _side(u)
    field = F.interpolate(coarse, (h, w), mode="bicubic", align_corners=True)
    eye = F.affine_grid(torch.eye(2, 3).expand(len(u), 2, 3), list(u.shape), align_corners=False)
    return _warp(u, eye + field.permute(0, 2, 3, 1) * torch.tensor([2 / w, 2 / h]))


CORRUPTIONS: dict[str, Corruption] = {
    c.name: c
    for c in (
        Corruption("gaussian-noise", "noise", (0.06, 0.10, 0.16, 0.24, 0.34), _gaussian_noise),
        Corruption("shot-noise", "noise", (60, 30, 14, 7, 3), _shot_noise),
        Corruption("impulse-noise", "noise", (0.02, 0.05, 0.10, 0.16, 0.25), _impulse_noise),
        Corruption("gaussian-blur", "blur", (0.03, 0.05, 0.07, 0.095, 0.125), _gaussian_blur),
        Corruption("defocus-blur", "blur", (0.03, 0.055, 0.085, 0.12, 0.16), _defocus_blur),
        Corruption("motion-blur", "blur", (0.1, 0.16, 0.24, 0.32, 0.42), _motion_blur),
        Corruption("brightness", "photometric", (0.1, 0.2, 0.3, 0.4, 0.5), _brightness),
        Corruption("contrast", "photometric", (0.75, 0.6, 0.45, 0.3, 0.15), _contrast),
        Corruption("gamma", "photometric", (1.25, 1.6, 2.0, 2.6, 3.4), _gamma),
        Corruption("pixelate", "digital", (0.03, 0.06, 0.1, 0.15, 0.2), _pixelate),
        Corruption("jpeg", "digital", (60, 35, 20, 12, 6), _jpeg),
        Corruption("quantise", "digital", (24, 12, 6, 4, 2), _quantise),
        Corruption("rotate", "geometric", (6, 12, 18, 26, 36), _rotate),
        Corruption("translate", "geometric", (0.03, 0.06, 0.1, 0.14, 0.2), _translate),
        Corruption("scale", "geometric", (0.06, 0.12, 0.2, 0.3, 0.42), _scale),
        Corruption("elastic", "geometric", (0.01, 0.02, 0.035, 0.05, 0.07), _elastic),
    )
}
