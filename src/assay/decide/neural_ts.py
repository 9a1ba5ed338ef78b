"""NeuralTS: Thompson sampling by the width of a network's prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from assay.decide.base import Policy
from assay.decide.confidence import ConfidenceLearner


@dataclass(frozen=True, kw_only=True)
class NeuralTS(ConfidenceLearner):
    """Play the best of samples N(-yhat, nu^2 lam g^T Z^-1 g / m) (Zhang et al., 2021, arXiv:2010.00827, algorithm 1,
    for costs)."""

    def scores(self, yhat: Tensor, width: Tensor, policy: Policy) -> Float[Tensor, "b k"]:
        """A sample of each arm's cost."""
        return yhat + math.sqrt(self.lam) * width * policy.normal(policy.arms).to(yhat)
