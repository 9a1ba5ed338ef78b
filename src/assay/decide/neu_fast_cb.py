"""NeuFastCB: perturbed KL-loss regression and inverse gap weighting relative to the best arm's cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from assay.decide.igw import fast_igw
from assay.decide.neural import NeuralLearner
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NeuFastCB(NeuralLearner):
    """Play FastCB's weighting of costs regressed under KL loss (Deb et al., 2023, arXiv:2312.07145, alg. 2).

    Regret O~(sqrt(K L*) + K), L* the best policy's total cost, under the assumptions of NeuSquareCB. ``gamma`` > 0;
    ``fast_gamma`` has the theory's value for a known L*. FastCB on a linear model is ``depth=0, c_p=0``.
    """

    gamma: float = 400.0
    loss: Literal["square", "kl"] = "kl"

    def __post_init__(self) -> None:
        if not self.gamma > 0 or self.loss != "kl":
            raise InputError(f"NeuFastCB: gamma={self.gamma}, loss={self.loss!r}; expected gamma > 0 and 'kl'")

    def probabilities(self, yhat: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """Inverse gap weighting relative to the best arm's cost."""
        return fast_igw(yhat, self.gamma)
