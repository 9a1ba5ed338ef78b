"""Square attack: random search with square-shaped changes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from assay.attacks.balls import L2, Ball, Linf, wide
from assay.attacks.scores import BLOCK, Climbers, ScoreSearch
from assay.runtime.errors import InputError
from assay.runtime.random import Draws

HALVINGS = (10, 50, 200, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries, section 3.2


class AsImages(nn.Module):
    """A model of samples of any shape as one of images (n, 1, 1, d): what a search that draws windows takes."""

    def __init__(self, model: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.shape = model, shape

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x.reshape(len(x), *self.shape))
        return out


@dataclass(frozen=True, kw_only=True)
class Square(ScoreSearch):
    """Score-based random search (Andriushchenko et al., 2020, arXiv:1912.00049, algorithms 1 to 3).

    l-infinity: starts from vertical stripes of +-eps; each query sets a random square, one sign a channel. l2: starts
    from a grid of bumps; each query takes the mass of one random window and the mass that the ball has left to another,
    as a bump of random sign. A change is kept where the objective grows: the margin, for targets the cross-entropy
    (section 3.1). ``p`` is the share of pixels in the first squares (None: the paper's 0.05, in l2 0.1) and is halved
    as the queries out of ``schedule`` are spent (None: the budget). x is images (n, c, h, w). Options: see ScoreSearch.
    """

    ball: Ball = Linf(8 / 255)
    p: float | None = None
    schedule: int | None = None
    budget: int = 10_000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.ball, (Linf, L2)):
            self.refuse("ball", repr(self.ball), "Linf(eps) or L2(eps)")
        if self.p is not None and not 0 < self.p <= 1:
            self.refuse("p", self.p, "a share of the pixels in (0, 1]")
        if self.schedule is not None and self.schedule < 1:
            self.refuse("schedule", self.schedule, "at least 1 query")

    def measure(self, delta: Float[Tensor, "n ..."]) -> Float[Tensor, " n"]:
        return self.ball.norm(delta)

    def first(self, x: Float[Tensor, "n ..."], draws: Draws) -> Float[Tensor, "n ..."]:
        if x.dim() != 4:
            raise InputError(f"Square: a sample has shape {tuple(x.shape[1:])}; expected an image (c, h, w)")
        _, c, h, w = x.shape
        if isinstance(self.ball, Linf):
            return (x + self.ball.eps * draws.signs(c, 1, w).to(x)).clamp_(*self.bounds)
        side = max(min(h, w) // 5, 1)
        rows, columns = h // side, w // side
        tile = bump(side).to(x).repeat(rows, columns)
        turned = bump(side).T.to(x).repeat(rows, columns)
        signs = draws.signs(c, rows, columns).to(x)
        turn = draws.signs(1, rows, columns).to(x) > 0
        signs, turn = (t.repeat_interleave(side, 2).repeat_interleave(side, 3) for t in (signs, turn))
        delta = torch.zeros_like(x)
        top, left = (h - rows * side) // 2, (w - columns * side) // 2
        delta[:, :, top : top + rows * side, left : left + columns * side] = signs * torch.where(turn, turned, tile)
        return self._inside(delta, x)

    def plan(self, at: Climbers, step: int) -> tuple[Tensor, ...]:
        """Rows and columns of the windows, the signs of the channels, and for l2 the window that gives and the turn."""
        c, h, w = at.x.shape[1:]
        places, signs = at.draws.uniform(BLOCK, 5), at.draws.signs(BLOCK, c, 1, 1).to(at.x)
        sides = torch.tensor([self._side(step + k, at.x) for k in range(BLOCK)], device=at.x.device)
        lines = [_line(places[:, :, k], sides, (h, w)[k % 2]) for k in range(4)]
        if isinstance(self.ball, Linf):
            return lines[0], lines[1], self.ball.eps * signs
        return *lines, signs, places[:, :, 4] > 0.5

    def propose(self, at: Climbers, plan: tuple[Tensor, ...], step: int) -> Float[Tensor, "n ..."]:
        if isinstance(self.ball, Linf):
            rows, columns, change = plan
            inside = (rows[:, :, None] & columns[:, None, :])[:, None]
            return torch.where(inside, (at.x + change).clamp_(*self.bounds), at.z)
        return self._moved_mass(at, plan, self._side(step, at.x))

    def _moved_mass(self, at: Climbers, plan: tuple[Tensor, ...], side: int) -> Float[Tensor, "n ..."]:
        """Algorithm 3: the mass of the second window, and what the ball has left, go to the first one."""
        rows, columns, source_rows, source_columns, signs, turn = plan
        to = (rows[:, :, None] & columns[:, None, :])[:, None]
        source = (source_rows[:, :, None] & source_columns[:, None, :])[:, None]
        delta = at.z - at.x
        n, c = delta.shape[:2]
        left = (self.ball.eps**2 - (delta**2).flatten(1).sum(1)).clamp_min(0)
        mass = ((delta * (to | source)) ** 2).sum((2, 3)) + left[:, None] / c
        old = delta.masked_select(to).view(n, c, side, side)
        shape = bump(side).to(at.x)
        new = torch.where(wide(turn, at.x), shape, shape.T) * signs + old / _size(old)
        new = new * mass.sqrt()[..., None, None] / _size(new)
        return self._inside(delta.masked_fill(source, 0).masked_scatter(to, new), at.x)

    def _inside(self, delta: Tensor, x: Tensor) -> Float[Tensor, "n ..."]:
        """x + delta with the norm of delta brought to eps, then clipped, which only shortens it."""
        size = self.ball.eps / self.measure(delta).clamp_min(1e-12)
        return (x + wide(size, x) * delta).clamp_(*self.bounds)

    def _side(self, i: int, x: Tensor) -> int:
        """The side of the window at query ``i``; in l2 it is odd and at least 3, where the image is as large."""
        h, w = x.shape[2:]
        p = self.p if self.p is not None else 0.05 if isinstance(self.ball, Linf) else 0.1
        halved = sum(i * 10_000 / (self.schedule or self.budget) > k for k in HALVINGS)
        side = max(round(math.sqrt(p / 2**halved * h * w)), 1)
        if isinstance(self.ball, L2):
            side = max(side + 1 - side % 2, 3)
        return min(side, h, w)


def _line(places: Float[Tensor, "n b"], sides: Int[Tensor, " b"], length: int) -> Bool[Tensor, "n b l"]:
    """Which of ``length`` pixels a window of each side covers, at a share in (0, 1) of the room that it has."""
    start = (places * (length - sides + 1)).long()[..., None]
    pixels = torch.arange(length, device=places.device)
    return (pixels >= start) & (pixels < start + sides[:, None])


def _size(windows: Float[Tensor, "n c s s"]) -> Float[Tensor, "n c 1 1"]:
    return windows.flatten(2).norm(dim=2).clamp_min(1e-12)[..., None, None]


@cache
def bump(side: int) -> Float[Tensor, "s s"]:
    """The change eta of an l2 window: bumps above, their negative below, of norm 1 (section 3.4, eq. 3)."""
    half = side // 2
    eta = torch.zeros(side, side, dtype=torch.float64)
    eta[:half], eta[half:] = _rectangle(half, side), -_rectangle(side - half, side)
    return eta / eta.norm()


def _rectangle(rows: int, columns: int) -> Float[Tensor, "r c"]:
    """Growing rectangles around the middle, the k-th (from 0) adding 1 / (k + 1)^2, of norm 1."""
    delta = torch.zeros(rows, columns, dtype=torch.float64)
    top, left = rows // 2, columns // 2
    for k in range(max(rows // 2 + 1, columns // 2 + 1)):
        delta[max(top - k, 0) : top + k + 1, max(left - k, 0) : left + k + 1] += 1 / (k + 1) ** 2
    return delta / delta.norm().clamp_min(1e-12)
