"""Projection onto a hyperplane inside a box, for many points at once."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from assay.attacks.balls import Bounds
from assay.runtime.errors import unknown


def project_to_hyperplane(
    z: Float[Tensor, "n ..."],
    w: Float[Tensor, "n ..."],
    gap: Float[Tensor, " n"],
    bounds: Bounds,
    norm: str,
) -> Float[Tensor, "n ..."]:
    """The displacement d of least ``norm`` ("linf", "l2", "l1") with <w, d> = gap and z + d in bounds.

    Croce and Hein (2020, arXiv:1907.02044, eq. 6 and appendix A.1). Where no point of the box is on the plane, d goes
    as far toward it as the box allows. z in bounds. One sort a row: the room r_i of coordinate i is used up to
    min(t v_i, r_i), where v is 1 in l-infinity and |w| in l2, and <w, d> grows piecewise linearly with t; in l1 the
    coordinates with the largest |w| are used up first.
    """
    weight, flat = w.flatten(1), z.flatten(1)
    sense = weight.sign() * torch.where(gap < 0, -1.0, 1.0).to(weight)[:, None]
    size, goal = weight.abs(), gap.abs()[:, None]
    room = torch.where(sense > 0, bounds[1] - flat, flat - bounds[0]).clamp_min(0)
    if norm == "l1":
        amount = _greedy(size, room, goal)
    elif norm in ("linf", "l2"):
        amount = _level(size, room, size if norm == "l2" else (size > 0).to(size), goal)
    else:
        raise unknown("norm of the projection", norm, ("linf", "l2", "l1"))
    return (amount * sense).view_as(z)


def _level(size: Tensor, room: Tensor, speed: Tensor, goal: Float[Tensor, "n 1"]) -> Float[Tensor, "n d"]:
    """min(t speed, room) with the t >= 0 at which sum size min(t speed, room) is ``goal``; ``room`` where none is."""
    moving = speed > 0
    knots, order = torch.where(moving, room / speed.clamp_min(1e-38), 0).sort(1)
    full = (size * room).gather(1, order).cumsum(1)  # what the coordinates up to a knot give once used up
    rate = (size * speed).gather(1, order)
    rest = rate.flip(1).cumsum(1).flip(1) - rate  # how fast the others still give
    short = full + knots * rest < goal
    k = short.sum(1, keepdim=True)
    before = torch.where(k > 0, full.gather(1, (k - 1).clamp_min(0)), 0)
    slope = torch.where(k > 0, rest.gather(1, (k - 1).clamp_min(0)), rate.sum(1, keepdim=True))
    t = (goal - before) / slope.clamp_min(1e-38)
    reached = (k < size.shape[1]) & (slope > 0)
    return torch.where(reached, torch.minimum(t * speed, room), torch.where(moving, room, 0))


def _greedy(size: Tensor, room: Tensor, goal: Float[Tensor, "n 1"]) -> Float[Tensor, "n d"]:
    """Rooms used up in the order of falling ``size`` until they give ``goal``."""
    sizes, order = size.sort(1, descending=True)
    gain = sizes * room.gather(1, order)
    left = (goal - (gain.cumsum(1) - gain)).clamp_min(0)
    amount = torch.where(sizes > 0, torch.minimum(left / sizes.clamp_min(1e-38), room.gather(1, order)), 0)
    return torch.zeros_like(size).scatter(1, order, amount)
