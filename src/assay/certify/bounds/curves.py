"""Two lines around a curve: on each side the tangent or chord that leaves the least area.

The area between a line below f and f over [l, u] depends on the line's value at the midpoint m alone, so the best lower
line supports the convex hull of f at m. Where f is convex on one piece and concave on either side of it, that line is
the tangent at the point of the piece nearest to m from which it stays below both ends, else the chord; the upper line
is the same for -f. ReLU's adaptive slope (Zhang et al., 2018, arXiv:1811.00866, section 3.3) is a special case; the
tangents of CROWN for sigmoid and tanh (table 2 there) differ where they touch.
"""

# ruff: noqa: E741
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.certify.bounds.relaxation import Lines

Function = Callable[[Tensor], Tensor]
Piece = tuple[float, float]

HALVINGS = 40  # of the bracket of a touching point; its sound end is kept
WHOLE: Piece = (-math.inf, math.inf)


@dataclass(frozen=True)
class Curve:
    """An elementwise operator: its value, its slope (a subgradient at a kink), and where it is convex and concave.

    ``convex``: the piece where f is convex, with f concave on either side of it; None where there is none.
    ``concave``: the same for -f; of two pieces the first serves intervals that end at or below 0. ``reach``: no line
    touches further from 0. ``valley``: where f has its minimum, if it is not monotone. ``scale``: a chord shorter than
    1e-6 (|m| + scale) takes the slope at m, since its own would be rounding.
    """

    value: Function
    slope: Function
    convex: Piece | None = None
    concave: Piece | tuple[Piece, Piece] | None = None
    reach: float = math.inf
    valley: float | None = None
    scale: float = 1.0

    def interval(self, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The range of f over [l, u]."""
        ends = self.value(l), self.value(u)
        lower, upper = torch.minimum(*ends), torch.maximum(*ends)
        if self.valley is not None:
            lower = torch.minimum(lower, self.value(torch.full_like(l, self.valley).clamp(l, u)))
        return lower, upper

    def lines(self, l: Tensor, u: Tensor) -> Lines:
        """The lines of least area with outward slack, worked out in float64: slopes near zero cancel."""
        low, high = l.double(), u.double()
        k, b = self._below(self.value, self.slope, low, high, self.convex)
        kk, bb = self._below(lambda t: -self.value(t), lambda t: -self.slope(t), low, high, self.concave)
        return outward(Lines(*(t.to(l.dtype) for t in (k, b, -kk, -bb))), l, u)

    def _below(
        self, f: Function, slope: Function, l: Tensor, u: Tensor, piece: Piece | tuple[Piece, Piece] | None
    ) -> tuple[Tensor, Tensor]:
        """Slope and intercept of the best line below f."""
        if piece is not None and isinstance(piece[0], tuple):
            sides = [self._below(f, slope, l, u, side) for side in piece]
            return torch.where(u <= 0, sides[0][0], sides[1][0]), torch.where(u <= 0, sides[0][1], sides[1][1])
        k, b = self._chord(f, slope, l, u)
        if piece is None:
            return k, b
        middle = (l + u) / 2
        if piece == WHOLE:
            k = slope(middle)
            return k, f(middle) - k * middle
        fits, from_l, from_u = touching(f, slope, l.detach(), u.detach(), piece, self.reach)
        at = middle.maximum(from_l).minimum(from_u)
        tangent = slope(at)
        for end, touch in ((l, from_l), (u, from_u)):  # the slope turns with the end that the tangent passes through
            turned = (at == touch) & (touch != end)
            gap = torch.where(turned, touch - end, torch.ones_like(end)).detach()
            rate = torch.where(turned, (tangent - slope(end)) / gap, torch.zeros_like(end)).detach()
            tangent = tangent + rate * (end - end.detach())
        return torch.where(fits, tangent, k), torch.where(fits, f(at) - tangent * at, b)

    def _chord(self, f: Function, slope: Function, l: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
        """The line through both ends; lowered to the lower one where rounding parts them."""
        width, middle, ends = u - l, (l + u) / 2, (f(l), f(u))
        tiny = width <= 1e-6 * (middle.abs() + self.scale)
        k = torch.where(tiny, slope(middle), (ends[1] - ends[0]) / torch.where(tiny, torch.ones_like(l), width))
        return k, torch.minimum(ends[0] - k * l, ends[1] - k * u)


@torch.no_grad()
def touching(
    f: Function, slope: Function, l: Tensor, u: Tensor, piece: Piece, reach: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Where tangents at points of ``piece`` stay below f on [l, u]: for points from d_l to d_u, if any.

    Returns whether there are any (bool), d_l and d_u, each of l's shape. The tangent at d lies below f at l from d_l
    on, and below f at u up to d_u: both by bisection.
    """
    a, b = piece
    first, last = l.clamp(min=a), u.clamp(max=b)
    fits = first <= last
    d_l, d_u = first.clone(), last.clone()
    for end, d, moves in ((l, d_l, fits & (l < a)), (u, d_u, fits & (u > b))):
        if not moves.any():
            continue
        e = end[moves]
        near, far = (first, last) if end is l else (last, first)
        bad, good = near[moves].clamp(-reach, reach), far[moves].clamp(-reach, reach)
        goal = f(e)
        fits[moves] &= f(good) + slope(good) * (e - good) <= goal
        for _ in range(HALVINGS):
            middle = (bad + good) / 2
            below = f(middle) + slope(middle) * (e - middle) <= goal
            good, bad = torch.where(below, middle, good), torch.where(below, bad, middle)
        d[moves] = good
    return fits & (d_l <= d_u), d_l, d_u


def outward(lines: Lines, l: Tensor, u: Tensor) -> Lines:
    """The lines moved apart by what rounding in their own precision may have cost them."""
    slack = max(1e-11, 8 * torch.finfo(l.dtype).eps)
    size = torch.maximum(l.abs(), u.abs()).detach()
    below = slack * (lines.lower_slope.abs() * size + lines.lower_intercept.abs())
    above = slack * (lines.upper_slope.abs() * size + lines.upper_intercept.abs())
    return Lines(lines.lower_slope, lines.lower_intercept - below, lines.upper_slope, lines.upper_intercept + above)
