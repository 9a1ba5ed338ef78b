"""The spherical softmax."""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from assay.losses.spherical import SphericalLoss
from assay.runtime.errors import InputError


class SphericalSoftmaxLoss(SphericalLoss):
    """-log of (o_c^2 + eps) / sum_k (o_k^2 + eps) (de Brebisson & Vincent, 2016, arXiv:1511.05042).

    ``eps`` > 0 keeps the loss finite at a target's score of 0; scores of either sign count alike, and a common scale
    of the scores matters through eps alone. Shapes and errors: see SphericalLoss.
    """

    def __init__(self, eps: float = 0.01, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__(reduction)
        if not 0 < eps < math.inf:
            raise InputError(f"SphericalSoftmaxLoss: eps={eps}; expected a finite number > 0")
        self.eps = float(eps)

    def value(
        self, s: Float[Tensor, " n"], q: Float[Tensor, " n"], own: Float[Tensor, " n"], classes: int
    ) -> Float[Tensor, " n"]:
        return (q + classes * self.eps).log() - (own.square() + self.eps).log()

    def extra_repr(self) -> str:
        return f"eps={self.eps}, {super().extra_repr()}"
