"""FMN: the fast minimum-norm attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from assay.attacks.balls import wide
from assay.attacks.engine import Climb
from assay.attacks.nearest import NearestAttack, cosine, scaled, unit


@dataclass(frozen=True, kw_only=True)
class FMN(NearestAttack):
    """Fast minimum-norm attack (Pintor et al., 2021, arXiv:2102.12827, algorithm 1), in linf or l2.

    Each step sets a sample's radius, then moves along the normalised gradient of the margin by a length that falls from
    ``alpha`` to ``alpha_last``, and projects onto the ball of that radius and into the bounds. The radius is, until a
    point met the goal, 1 + gamma times the present distance and that to the linearised boundary together (the paper's
    algorithm leaves out the factor, and lands on a linear boundary but not beyond it); from then on it grows by the
    factor 1 + gamma where the goal is not met, and where it is, is the shorter of itself and the best distance times
    1 - gamma; gamma falls from ``gamma`` to ``gamma_last`` along a cosine. Lengths are in the data's units. Where a
    bound blocks the gradient, a coordinate counts neither in the direction nor in the distance: else the bounds take
    from each step as much as it gains, and no boundary is reached. Shapes, ranges and errors: see Attack; options: see
    NearestAttack.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    steps: int = 1000
    alpha: float = 1.0
    alpha_last: float = 0.01
    gamma: float = 0.05
    gamma_last: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.restarts != 1:
            self.refuse("restarts", self.restarts, "1, as all runs start at x")
        if not 0 < self.alpha_last <= self.alpha:
            self.refuse("alpha, alpha_last", (self.alpha, self.alpha_last), "alpha >= alpha_last > 0")
        if not 0 < self.gamma_last <= self.gamma < 1:
            self.refuse("gamma, gamma_last", (self.gamma, self.gamma_last), "1 > gamma >= gamma_last > 0")

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        z, low, high = run.z, *self.bounds
        grad = run.grad.masked_fill(((z >= high) & (run.grad > 0)) | ((z <= low) & (run.grad < 0)), 0)
        best = -run.value[run.rows]
        gamma = cosine(self.gamma, self.gamma_last, run.step, self.steps)
        last = run.memory.get("radius", torch.full_like(run.level, math.inf))
        outside = run.level.abs() / self.dual(grad).clamp_min(1e-12) + self.measure(z - run.x)
        missed = torch.where(best.isfinite(), last, outside) * (1 + gamma)
        radius = torch.where(run.met, torch.minimum(last, best) * (1 - gamma), missed)
        run.memory["radius"] = radius
        delta = z - run.x + cosine(self.alpha, self.alpha_last, run.step, self.steps) * unit(grad)
        return (run.x + self._clip(delta, radius)).clamp_(*self.bounds)

    def _clip(self, delta: Tensor, radius: Float[Tensor, " n"]) -> Float[Tensor, "n ..."]:
        """``delta`` in the ball of ``radius``."""
        if self.norm == "linf":
            return torch.minimum(torch.maximum(delta, -wide(radius, delta)), wide(radius, delta))
        return scaled(delta, (radius / self.measure(delta).clamp_min(1e-30)).clamp_max(1))
