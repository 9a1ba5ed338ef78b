"""Random noise: the floor that every attack has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from assay.attacks.engine import GradientAttack
from assay.subject.access import Access


@dataclass(frozen=True, kw_only=True)
class RandomNoise(GradientAttack):
    """The best of ``restarts`` points drawn uniformly from the ball; no gradient is taken.

    What Goodfellow et al. (2015, arXiv:1412.6572, section 4) set adversarial perturbations against. Shapes, ranges and
    errors: see Attack; options: see GradientAttack.
    """

    access: ClassVar[Access] = Access.SCORE

    steps: int = 0
    restarts: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps != 0:
            self.refuse("steps", self.steps, "0: noise does not climb")
