"""The exponential loss."""

from __future__ import annotations

import math
import warnings
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.margin import margins
from assay.losses.pairs import check_reduction, reduced


class ExponentialLoss(nn.Module):
    """exp(-z) of the margin z = y f (Freund & Schapire, 1997, "A decision-theoretic generalization of on-line
    learning").

    Its slope has no bound: clip the gradient's norm when networks are trained with it. A margin that would overflow is
    clamped (such a sample has no gradient) and a RuntimeWarning says how many were. ``scores`` f (n,) or (n, 1),
    finite; ``target`` (n,) int64, 0 for y = -1 and 1 for y = +1. Returns a scalar >= 0, or (n,) under
    ``reduction="none"``. Other input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()
    binary: ClassVar[bool] = True

    def __init__(self, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        check_reduction("ExponentialLoss", reduction)
        self.reduction = reduction

    def forward(self, scores: Float[Tensor, "n ..."], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``scores`` under ``target``."""
        z = margins("ExponentialLoss", scores, target)
        limit = math.log(torch.finfo(z.dtype).max) - 8  # room for the sum over a batch
        below = int((-z > limit).sum())
        if below:
            warnings.warn(f"ExponentialLoss: {below} margins clamped at {-limit:.0f}", RuntimeWarning, stacklevel=2)
        return reduced((-z).clamp(max=limit).exp(), self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
