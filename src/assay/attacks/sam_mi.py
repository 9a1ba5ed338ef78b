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

    The ascent on min over ||d|| <= r of L(x + d), sharpness-aware minimisation turned around: flat maxima transfer.
    The point of the official code is r = eps / 10 below x along the sign of the gradient; here it is cut to the ball,
    and the momentum step is taken from x. Two ensemble gradients a step. Shapes, ranges and errors: see EnsembleAttack.
    """

    reverse_step: float = 1 / 10

    def move(self, run: Climb) -> Float[Tensor, "n ..."]:
        run.grad = run.gradient(self.behind(run))
        return super().move(run)
