"""The Z-loss."""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from assay.losses.spherical import SphericalLoss
from assay.runtime.errors import InputError


class ZLoss(SphericalLoss):
    """softplus(a (b - z_c)) / a of the target's z-score among the scores (de Brebisson et al., 2016, arXiv:1604.08859).

    z = (o - mean o) / std o with the biased deviation, so that a shift and a positive scale of the scores change
    nothing, and z_c <= sqrt(c - 1). ``a`` > 0 is the sharpness, ``b`` the z-score from which on a sample counts as
    right; they are to be tuned to the task (large c, small top-k). ``b`` None is min(0.83 sqrt(c - 1), 10), which with
    a = 5 is a choice of ours for few classes. The weights' norm grows under SGD, as it is free. It is not the penalty
    log^2 of the softmax's normaliser that goes by the same name in language models, and gives no probabilities.

    Shapes and errors: see SphericalLoss; also a <= 0 is an InputError. Scores whose deviation is at most ``eps`` > 0
    count as equal: they have z = 0 and no gradient, and a RuntimeWarning says so, as it does for a b that no z-score
    reaches.
    """

    def __init__(
        self,
        a: float = 5.0,
        b: float | None = None,
        reduction: Literal["mean", "sum", "none"] = "mean",
        eps: float = 1e-8,
    ) -> None:
        super().__init__(reduction)
        if not 0 < a < math.inf or not (b is None or math.isfinite(b)) or not 0 < eps < math.inf:
            raise InputError(f"ZLoss: a={a}, b={b}, eps={eps}; expected finite numbers, a and eps > 0")
        self.a, self.b, self.eps = float(a), b, float(eps)

    def position(self, classes: int) -> float:
        """b among ``classes`` classes."""
        most = math.sqrt(classes - 1)
        if self.b is None:
            return min(0.83 * most, 10.0)
        if self.b > most:
            warnings.warn(f"ZLoss: b={self.b} is above {most:.3g}, the largest z-score", RuntimeWarning, stacklevel=2)
        return self.b

    def prepared(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        return logits - logits.mean(1, keepdim=True)

    def value(
        self, s: Float[Tensor, " n"], q: Float[Tensor, " n"], own: Float[Tensor, " n"], classes: int
    ) -> Float[Tensor, " n"]:
        mean = s / classes
        variance = q / classes - mean.square()
        if (variance <= self.eps**2).any():
            warnings.warn("ZLoss: samples with equal scores have no gradient", RuntimeWarning, stacklevel=4)
        z = (own - mean) / variance.clamp_min(self.eps**2).sqrt()
        z = torch.where(variance > self.eps**2, z, 0 * own)
        return F.softplus(self.a * (self.position(classes) - z)) / self.a

    def extra_repr(self) -> str:
        return f"a={self.a}, b={self.b}, {super().extra_repr()}"
