"""VICReg: two views agree, every dimension varies, and no two dimensions vary together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from assay.losses.contrastive import off_diagonal
from assay.represent.two_views import TwoViews
from assay.runtime.errors import InputError
from assay.training import State


def vicreg_loss(
    z1: Float[Tensor, "n d"],
    z2: Float[Tensor, "n d"],
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Float[Tensor, ""]:
    """Weighted sum of three terms, each of both views (Bardes et al., 2022, arXiv:2105.04906, eq. 1 to 6, algorithm 1).

    Invariance is the mean squared difference (algorithm 1 divides by d too, eq. 5 does not); variance the mean over
    dimensions of max(0, 1 - sqrt(Var + 1e-4)); covariance the sum of the squared entries of the covariance matrix
    besides its diagonal, over d. At least 0. Raises InputError unless both are (n, d) with n >= 2 and weights >= 0.
    """
    weights = (invariance, variance, covariance)
    if z1.dim() != 2 or z1.shape != z2.shape or len(z1) < 2 or not all(0 <= w < math.inf for w in weights):
        shapes = f"{tuple(z1.shape)} and {tuple(z2.shape)}"
        raise InputError(f"vicreg_loss: {shapes}, weights {weights}; expected the same (n, d), n >= 2, weights >= 0")
    loss = invariance * F.mse_loss(z1, z2)
    for z in (z1, z2):
        loss = loss + variance * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
        loss = loss + covariance * off_diagonal(z.T.cov().view(z.shape[1], -1)).square().sum() / z.shape[1]
    return loss


@dataclass(frozen=True, kw_only=True)
class VICReg(TwoViews):
    """Bardes et al., 2022, arXiv:2105.04906; ``fit`` as in TwoViews, the loss as ``vicreg_loss`` with these weights."""

    projector: tuple[int, ...] = (8192, 8192, 8192)
    invariance: float = 25.0
    variance: float = 25.0
    covariance: float = 1.0

    def loss(self, model: nn.Module, one: Tensor, two: Tensor, state: State) -> Tensor:
        return vicreg_loss(model(one), model(two), self.invariance, self.variance, self.covariance)
