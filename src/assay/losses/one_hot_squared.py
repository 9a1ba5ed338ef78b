"""The squared error to the one-hot target."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from assay.losses.spherical import SphericalLoss


class OneHotSquaredLoss(SphericalLoss):
    """||o - e_c||^2 = q - 2 o_c + 1 (de Brebisson & Vincent, 2016, arXiv:1511.05042). Shapes and errors:
    see SphericalLoss.
    """

    def value(
        self, s: Float[Tensor, " n"], q: Float[Tensor, " n"], own: Float[Tensor, " n"], classes: int
    ) -> Float[Tensor, " n"]:
        return q - 2 * own + 1
