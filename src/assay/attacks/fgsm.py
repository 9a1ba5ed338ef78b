"""The fast gradient sign method."""

from __future__ import annotations

from dataclasses import dataclass

from assay.attacks.engine import GradientAttack


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
