"""The Taylor softmax."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from assay.losses.spherical import SphericalLoss


class TaylorSoftmaxLoss(SphericalLoss):
    """-log of (1 + o_c + o_c^2 / 2) / sum_k (1 + o_k + o_k^2 / 2), the exponential's second-order expansion, which is
    positive (de Brebisson & Vincent, 2016, arXiv:1511.05042). Shapes and errors: see SphericalLoss.
    """

    def value(
        self, s: Float[Tensor, " n"], q: Float[Tensor, " n"], own: Float[Tensor, " n"], classes: int
    ) -> Float[Tensor, " n"]:
        return (classes + s + q / 2).log() - (1 + own + own.square() / 2).log()
