"""Backward loss correction."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.pairs import check_logits, check_reduction, reduced
from assay.losses.transition import check_transition, matched
from assay.runtime.errors import InputError


class BackwardCorrectionLoss(nn.Module):
    """T^-1 times the cross-entropies of all classes, at the given one (Patrini et al., 2017, arXiv:1609.03872, Th. 1).

    Its mean over given labels is the cross-entropy of the true one; single values may be negative.
    ``transition`` T (c, c) has T[i, j] = P(given label j | true label i); the identity where it is None. ``logits``
    (n, c), c >= 2, finite; ``target`` (n,) int64 in [0, c). Returns a scalar, or (n,) under ``reduction="none"``.
    InputError for a T whose rows are no distributions or that has no inverse, and for other input.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, transition: Tensor | None = None, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        check_reduction("BackwardCorrectionLoss", reduction)
        self.reduction = reduction
        self.inverse: Tensor | None = None
        if transition is not None:
            t = check_transition("BackwardCorrectionLoss", transition)
            if torch.linalg.matrix_rank(t) < len(t):
                raise InputError("BackwardCorrectionLoss: the transition has no inverse; expected one of full rank")
            self.inverse = torch.linalg.inv(t)

    def forward(self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``logits`` under ``target``."""
        check_logits("BackwardCorrectionLoss", logits, target)
        rows = matched("BackwardCorrectionLoss", self.inverse, logits)[target]
        return reduced(-(rows * F.log_softmax(logits, 1)).sum(1), self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
