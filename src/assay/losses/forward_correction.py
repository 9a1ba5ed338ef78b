"""Forward loss correction."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.pairs import check_logits, check_reduction, reduced
from assay.losses.transition import check_transition, matched


class ForwardCorrectionLoss(nn.Module):
    """Cross-entropy of T^T p, the distribution of the *given* label (Patrini et al., 2017, arXiv:1609.03872, Th. 2).

    ``transition`` T (c, c) has T[i, j] = P(given label j | true label i); p = softmax is of the true one. The identity
    where it is None. ``logits`` (n, c), c >= 2, finite; ``target`` (n,) int64 in [0, c). Returns a scalar >= 0, or
    (n,) under ``reduction="none"``. InputError for a T whose rows are no distributions, a class that T never gives,
    and other input.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, transition: Tensor | None = None, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        check_reduction("ForwardCorrectionLoss", reduction)
        self.transition = None if transition is None else check_transition("ForwardCorrectionLoss", transition)
        self.reduction = reduction

    def forward(self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``logits`` under ``target``."""
        check_logits("ForwardCorrectionLoss", logits, target)
        columns = matched("ForwardCorrectionLoss", self.transition, logits).log().T[target]  # log T[., y] a sample
        return reduced(-torch.logsumexp(F.log_softmax(logits, 1) + columns, 1), self.reduction)

    def extra_repr(self) -> str:
        return f"reduction={self.reduction!r}"
