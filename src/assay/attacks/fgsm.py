"""The fast gradient sign method."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from assay.attacks.balls import Linf
from assay.attacks.base import Goal
from assay.attacks.engine import GradientAttack
from assay.runtime.inference import BATCH


@dataclass(frozen=True, kw_only=True)
class FGSM(GradientAttack):
    """One step to the edge of the ball along the steepest direction (Goodfellow et al., 2015, arXiv:1412.6572, eq. 1).

    In an l-infinity ball that is eps times the sign of the gradient; in other balls their own steepest direction. With
    ``random_start`` it is the fast variant of Wong et al. (2020, arXiv:2001.03994). Shapes, ranges and errors: see
    Attack; options: see GradientAttack.
    """

    steps: int = 1
    step_size: float | None = 1.0
    random_start: bool = False


def signs(
    model: nn.Module, x: Float[Tensor, "n ..."], goal: Goal, *, batch_size: int = BATCH
) -> Float[Tensor, "n ..."]:
    """The signs (-1, 0 or 1) of the gradient that leads to the goal: an unclipped step of length 1."""
    step = FGSM(ball=Linf(1.0), bounds=(-math.inf, math.inf), early_stop=False)
    return (step.run(model, x, goal, seed=0, batch_size=batch_size).x_adv - x).round()
