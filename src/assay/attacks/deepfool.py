"""DeepFool: steps to the nearest linearised boundary."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from assay.attacks.base import Goal, Untargeted
from assay.attacks.engine import Climb
from assay.attacks.hyperplane import project_to_hyperplane
from assay.attacks.nearest import NearestAttack, linearise


@dataclass(frozen=True, kw_only=True)
class DeepFool(NearestAttack):
    """Steps to the nearest boundary of the linearised classifier (Moosavi-Dezfooli et al., 2016, arXiv:1511.04599).

    Algorithm 2, in l2 or, with the step of section 3.3, linf. Each step is the projection onto the nearest boundary
    (inside the bounds, which the paper does not know). The steps add up to r; the classifier is asked, and linearised,
    at x + (1 + ``overshoot``) r, clipped, and the first such point that meets the goal counts. For goals other than
    untargeted ones the boundary is that of their margin. Shapes, ranges and errors: see Attack; options: see
    NearestAttack.
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")

    steps: int = 50
    overshoot: float = 0.02
    enough: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss != "margin":
            self.refuse("loss", self.loss, "margin, which is zero on the boundary")
        if self.restarts != 1:
            self.refuse("restarts", self.restarts, "1, as all runs start at x")
        if not self.overshoot >= 0:
            self.refuse("overshoot", self.overshoot, "a share >= 0")

    def slope(self, level: Tensor, logits: Tensor, z: Tensor, goal: Goal) -> tuple[Tensor, Tensor, int]:
        if not isinstance(goal, Untargeted):
            return super().slope(level, logits, z, goal)
        return *linearise(logits, z, goal.y, self.norm), logits.shape[1]

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        step = project_to_hyperplane(run.z, run.grad, -run.level, self.bounds, self.norm)
        r = run.memory["r"] + step if run.step else step
        run.memory["r"] = r
        return (run.x + (1 + self.overshoot) * r).clamp_(*self.bounds)
