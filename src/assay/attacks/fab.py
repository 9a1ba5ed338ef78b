"""FAB: the fast adaptive boundary attack."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assay.attacks.balls import wide
from assay.attacks.base import Goal, Untargeted
from assay.attacks.engine import Climb
from assay.attacks.hyperplane import project_to_hyperplane
from assay.attacks.nearest import NORMS, NearestAttack, linearise, scaled


@dataclass(frozen=True, kw_only=True)
class FAB(NearestAttack):
    """Fast adaptive boundary attack (Croce and Hein, 2020, arXiv:1907.02044, algorithm 1), in linf, l2 or l1.

    Each step linearises the classifier at z, projects z and x onto the nearest boundary inside the box (eq. 6), goes to
    a mean of both projections that leans to that of x by at most ``alpha_max`` (eq. 9), overshooting by ``eta``
    (eq. 8), and where that point is adversarial goes back by ``beta`` toward x (eq. 11). The first run starts at x,
    further ``restarts`` at random within half the distance found so far, or within half of ``radius`` where that is
    smaller (None: no limit; a sample without a point starts at x). ``targets=9`` is the targeted version: one run
    toward each boundary, one backward pass a step instead of one a class. Shapes, ranges and errors: see Attack;
    options: see NearestAttack.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    norm: Literal["linf", "l2", "l1"] = "linf"
    steps: int = 100
    alpha_max: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    radius: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss != "margin":
            self.refuse("loss", self.loss, "margin, which is zero on the boundary")
        if not (0 <= self.alpha_max <= 1 and self.eta >= 1 and 0 < self.beta < 1):
            values = (self.alpha_max, self.eta, self.beta)
            self.refuse("alpha_max, eta, beta", values, "alpha_max in [0, 1], eta >= 1 and beta in (0, 1)")
        if self.radius is not None and not self.radius > 0:
            self.refuse("radius", self.radius, "a distance above 0")

    def begin(self, run: Climb) -> Float[Tensor, "n ..."]:
        reach = (-run.found).clamp_max(math.inf if self.radius is None else self.radius)
        reach = torch.where(run.found.isfinite(), reach, 0) / 2
        return (run.x + scaled(NORMS[self.norm](1.0).draw(run.x, run.draws), reach)).clamp_(*self.bounds)

    def slope(self, level: Tensor, logits: Tensor, z: Tensor, goal: Goal) -> tuple[Tensor, Tensor, int]:
        if not isinstance(goal, Untargeted):
            return super().slope(level, logits, z, goal)
        return *linearise(logits, z, goal.y, self.norm), logits.shape[1]

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        x, z, w = run.x, run.z, run.grad
        # Both planes are where the linearised objective is zero: level + <w, point - z> = 0.
        gap = -run.level - (w * (x - z)).flatten(1).sum(1)
        both, twice = torch.cat((z, x)), torch.cat((w, w))
        near, far = project_to_hyperplane(both, twice, torch.cat((-run.level, gap)), self.bounds, self.norm).chunk(2)
        a, b = self.measure(near).clamp_min(1e-8), self.measure(far).clamp_min(1e-8)
        alpha = wide((a / (a + b)).clamp_max(self.alpha_max), z)
        point = ((1 - alpha) * (z + self.eta * near) + alpha * (x + self.eta * far)).clamp_(*self.bounds)
        met = wide(run.look(point), z)
        return torch.where(met, x + self.beta * (point - x), point)
