"""NeuSquareCB: perturbed square-loss regression and inverse gap weighting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from assay.decide.igw import inverse_gap_weighting
from assay.decide.neural import NeuralLearner
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NeuSquareCB(NeuralLearner):
    """Play inverse gap weighting of costs regressed under square loss (Deb et al., 2023, arXiv:2312.07145, alg. 1).

    Regret O~(sqrt(K T)) for costs in [0, 1] that a wide network with smooth activation realises and whose tangent
    kernel is positive definite; contexts may be chosen by an adversary. ``gamma`` > 0 trades exploration for trust in
    the predictions; ``square_gamma`` has the theory's value. SquareCB on a linear model is ``depth=0, c_p=0``.
    """

    gamma: float = 100.0
    loss: Literal["square", "kl"] = "square"

    def __post_init__(self) -> None:
        if not self.gamma > 0:
            raise InputError(f"NeuSquareCB: gamma={self.gamma}; expected a number > 0")

    def probabilities(self, yhat: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Inverse gap weighting."""
        return inverse_gap_weighting(yhat, self.gamma)
