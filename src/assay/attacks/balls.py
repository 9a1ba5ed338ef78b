"""Norm balls as values: norm, projection, uniform draws, and the steepest direction."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.runtime.errors import InputError
from assay.runtime.random import Draws

Bounds = tuple[float, float]


def wide(values: Float[Tensor, " n"], x: Tensor) -> Tensor:
    """Values (n,) shaped to broadcast over samples like ``x``."""
    return values.reshape(-1, *[1] * (x.dim() - 1))


@dataclass(frozen=True)
class Ball:
    """All points within ``eps`` >= 0 of a sample, in the data's units."""

    eps: float

    def __post_init__(self) -> None:
        if not (isinstance(self.eps, (int, float)) and math.isfinite(self.eps) and self.eps >= 0):
            raise InputError(f"{type(self).__name__}: eps is {self.eps}; expected a finite number >= 0")

    def norm(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        """The norm of each row."""
        raise TypeError(f"{type(self).__name__} states no norm")

    def project(self, z: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."], bounds: Bounds) -> Float[Tensor, "n ..."]:
        """``z`` brought into the ball around ``x`` and into the bounds; a point in both stays where it is."""
        raise TypeError(f"{type(self).__name__} states no projection")

    def draw(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        """A displacement of each sample, uniform in the ball."""
        raise TypeError(f"{type(self).__name__} states no draw")

    def ascent(self, grad: Float[Tensor, "n ..."], z: Float[Tensor, "n ..."], bounds: Bounds) -> Float[Tensor, "n ..."]:
        """The direction of norm 1 along which a linear function with this gradient grows fastest."""
        raise TypeError(f"{type(self).__name__} states no direction")


@dataclass(frozen=True)
class Linf(Ball):
    """No coordinate moves by more than eps."""

    def norm(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return delta.flatten(1).abs().amax(1)

    def project(self, z: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."], bounds: Bounds) -> Float[Tensor, "n ..."]:
        return (z - x).clamp_(-self.eps, self.eps).add_(x).clamp_(*bounds)

    def draw(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        return (draws.uniform(*x.shape[1:]).to(x) * 2 - 1) * self.eps

    def ascent(self, grad: Float[Tensor, "n ..."], z: Float[Tensor, "n ..."], bounds: Bounds) -> Float[Tensor, "n ..."]:
        return grad.sign()


@dataclass(frozen=True)
class L2(Ball):
    """The Euclidean norm of the displacement is at most eps.

    ``project`` scales into the ball, then clips: as x is in bounds, clipping only shortens the displacement.
    """

    def norm(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return delta.flatten(1).norm(dim=1)

    def project(self, z: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."], bounds: Bounds) -> Float[Tensor, "n ..."]:
        delta = z - x
        scale = (self.eps / self.norm(delta).clamp_min(1e-30)).clamp_max(1)
        return delta.mul_(wide(scale, x)).add_(x).clamp_(*bounds)

    def draw(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        direction = draws.normal(*x.shape[1:]).to(x)
        radius = draws.uniform(1)[:, 0].to(x) ** (1 / x[0].numel())
        return direction * wide(self.eps * radius / self.norm(direction).clamp_min(1e-30), x)

    def ascent(self, grad: Float[Tensor, "n ..."], z: Float[Tensor, "n ..."], bounds: Bounds) -> Float[Tensor, "n ..."]:
        flat = grad.flatten(1)
        # Dividing by the largest entry first keeps tiny gradients from underflowing in the sum of squares.
        flat = flat / flat.abs().amax(1, keepdim=True).clamp_min(1e-38)
        return (flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).view_as(grad)


@dataclass(frozen=True)
class L1(Ball):
    """The absolute displacements sum to at most eps.

    ``project`` is the exact Euclidean projection onto ball and bounds together (Croce and Hein, 2021,
    arXiv:2103.01208, proposition 2.1). ``ascent`` moves the fraction ``density`` of the coordinates with the largest
    gradient that the bounds do not block, each by the same amount (Tramer and Boneh, 2019, arXiv:1904.13000, SLIDE).
    """

    density: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.density <= 1:
            raise InputError(f"L1: density is {self.density}; expected a fraction in (0, 1]")

    def norm(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return delta.flatten(1).abs().sum(1)

    def project(self, z: Float[Tensor, "n ..."], x: Float[Tensor, "n ..."], bounds: Bounds) -> Float[Tensor, "n ..."]:
        """The displacement of coordinate i is sign(d) clamp(|d| - t, 0, room), with the t >= 0 that sums to eps.

        The sum is piecewise linear and falling in t, with knots at |d| - room and |d|.
        """
        delta = (z - x).flatten(1)
        size, flat = delta.abs(), x.flatten(1)
        room = torch.where(delta > 0, bounds[1] - flat, flat - bounds[0]).clamp_min(0)
        capped = torch.minimum(size, room)
        over = capped.sum(1) > self.eps
        if over.any():
            capped[over] = _shrink(size[over], room[over], self.eps)
        return (capped * delta.sign()).view_as(x).add_(x).clamp_(*bounds)

    def draw(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        d = x[0].numel()
        # d of d + 1 exponentials over their sum are uniform on the solid simplex; signs make it the ball.
        e = -draws.uniform(d + 1).to(x).log()
        return (self.eps * e[:, :d] / e.sum(1, keepdim=True) * draws.signs(d).to(x)).view_as(x)

    def ascent(self, grad: Float[Tensor, "n ..."], z: Float[Tensor, "n ..."], bounds: Bounds) -> Float[Tensor, "n ..."]:
        blocked = ((z >= bounds[1]) & (grad > 0)) | ((z <= bounds[0]) & (grad < 0))
        flat = grad.masked_fill(blocked, 0).flatten(1)
        k = max(1, math.ceil(self.density * flat.shape[1]))
        rows = flat.abs().topk(k, 1).indices
        step = torch.zeros_like(flat).scatter_(1, rows, flat.gather(1, rows).sign())
        return (step / step.abs().sum(1, keepdim=True).clamp_min(1)).view_as(grad)


def _shrink(size: Float[Tensor, "n d"], room: Float[Tensor, "n d"], eps: float) -> Float[Tensor, "n d"]:
    """clamp(size - t, 0, room) with the t >= 0 at which each row sums to eps (rows that sum to more at t = 0)."""
    d = size.shape[1]
    knots, order = torch.cat((size - room, size), 1).double().sort(1)
    # Past the knot size - room a coordinate starts to shrink with t; past the knot size it is at 0.
    slope = torch.where(order < d, 1.0, -1.0).double().cumsum(1)
    lost = torch.cat((torch.zeros_like(knots[:, :1]), (slope[:, :-1] * knots.diff(dim=1)).cumsum(1)), 1)
    excess = room.double().sum(1, keepdim=True) - eps
    k = torch.searchsorted(lost, excess, right=True).clamp(1, 2 * d) - 1
    t = knots.gather(1, k) + (excess - lost.gather(1, k)) / slope.gather(1, k).clamp_min(1)
    return torch.minimum((size.double() - t).clamp_min(0), room.double()).to(size)
