"""Barlow Twins: two views of an image agree, and no two dimensions say the same."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from assay.represent.two_views import TwoViews
from assay.runtime.errors import InputError
from assay.training import State


def barlow_twins_loss(z1: Float[Tensor, "n d"], z2: Float[Tensor, "n d"], lam: float = 5e-3) -> Float[Tensor, ""]:
    """sum_i (1 - C_ii)^2 + lam sum over i != j of C_ij^2, C the cross-correlation of the two views' dimensions over the
    batch (Zbontar et al., 2021, arXiv:2103.03230, eq. 1 and 2).

    Every dimension is centred and scaled by its standard deviation (with 1e-5 beside the variance, as batch norm). At
    least 0. Raises InputError unless both are (n, d) with n >= 2 and lam >= 0.
    """
    if z1.dim() != 2 or z1.shape != z2.shape or len(z1) < 2 or not (math.isfinite(lam) and lam >= 0):
        raise InputError(
            f"barlow_twins_loss: {tuple(z1.shape)} and {tuple(z2.shape)}, lam={lam}; expected the same (n, d), n >= 2, "
            "lam >= 0"
        )
    a, b = ((z - z.mean(0)) / (z.var(0, correction=0) + 1e-5).sqrt() for z in (z1, z2))
    c = a.T @ b / len(a)
    own = (1 - c.diagonal()).square().sum()
    return own + lam * (c.square().sum() - c.diagonal().square().sum())


@dataclass(frozen=True, kw_only=True)
class BarlowTwins(TwoViews):
    """Zbontar et al., 2021, arXiv:2103.03230, algorithm 1; ``fit`` as in TwoViews.

    ``lam`` weighs the redundancy of the dimensions. The paper trains by LARS over 1,000 epochs of batches of 2,048.
    """

    lam: float = 5e-3
    projector: tuple[int, ...] = (8192, 8192, 8192)
    epochs: int = 1000
    batch_size: int = 2048

    def loss(self, model: nn.Module, one: Tensor, two: Tensor, state: State) -> Tensor:
        return barlow_twins_loss(model(one), model(two), self.lam)
