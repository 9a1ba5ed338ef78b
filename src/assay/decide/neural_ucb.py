"""NeuralUCB: optimism by the width of a network's prediction."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from assay.decide.base import Policy
from assay.decide.confidence import ConfidenceLearner


@dataclass(frozen=True, kw_only=True)
class NeuralUCB(ConfidenceLearner):
    """Play the largest -yhat + nu sqrt(g^T Z^-1 g / m) (Zhou et al., 2020, arXiv:1911.04462, algorithm 1, for costs).

    The diagonal Z and one step of gradient descent a round are the cheap forms of the public experiments.
    """

    def scores(self, yhat: Tensor, width: Tensor, policy: Policy) -> Float[Tensor, "b k"]:
        """The lower confidence bound of the cost."""
        return yhat - width
