"""MI-SAM: the momentum attack that climbs from the flattest side."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from assay.attacks.engine import Climb
from assay.attacks.ensemble import EnsembleAttack


@dataclass(frozen=True, kw_only=True)
class SAM_MI(EnsembleAttack):
    """MIFGSM with the gradient of the point a reverse step behind (Chen et al., 2023, arXiv:2303.09105).

    It climbs min over ||d|| <= r of L(x + d), sharpness-aware minimisation turned around: flat maxima transfer. As in
    the official code r is eps / 10 along the sign of the gradient, and the momentum step is taken from x. Unlike there
    the point is cut to the ball, and the gradient at x, which that code does not clear, is not added. Two ensemble
    gradients a step. Shapes, ranges and errors: see EnsembleAttack.
    """

    reverse_step: float = 1 / 10

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        run.grad = run.gradient(self.behind(run))
        return super().move(run)
