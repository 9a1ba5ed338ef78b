"""Projected gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

from assay.attacks.engine import GradientAttack


@dataclass(frozen=True, kw_only=True)
class PGD(GradientAttack):
    """Projected steepest ascent from a random point of the ball (Madry et al., 2018, arXiv:1706.06083, section 2.1).

    The ball chooses the step: signs in Linf, the normalised gradient in L2, a sparse step in L1 (Tramer and Boneh,
    2019, arXiv:1904.13000). Shapes, ranges and errors: see Attack; options: see GradientAttack.
    """
