"""Neural epsilon-greedy: the cheapest predicted arm, now and then any arm."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.decide.neural import NeuralLearner
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class NeuralEpsGreedy(NeuralLearner):
    """The arm of least predicted cost with probability 1 - ``eps``, a uniform one with ``eps`` in [0, 1].

    A baseline of Deb et al. (2023, arXiv:2312.07145); its regression is not perturbed.
    """

    eps: float = 0.05
    c_p: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eps <= 1:
            raise InputError(f"NeuralEpsGreedy: eps={self.eps}; expected a probability")

    def probabilities(self, yhat: Float[Tensor, "b k"]) -> Float[Tensor, "b k"]:
        """eps / K each, and the rest to the best."""
        p = torch.full_like(yhat, self.eps / yhat.shape[1], dtype=torch.float64)
        best = yhat.argmin(1, keepdim=True)
        return p.scatter_add(1, best, torch.full_like(best, 1, dtype=torch.float64) * (1 - self.eps))
