"""Symmetric cross-entropy."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.pairs import check_logits, check_reduction, reduced
from assay.runtime.errors import InputError


class SymmetricCrossEntropyLoss(nn.Module):
    """``alpha`` x cross-entropy + ``beta`` x reverse cross-entropy (Wang et al., 2019, arXiv:1908.06112, section 3).

    The reverse term -sum_k p_k log q_k of a label q has log 0 := ``log_zero`` < 0 and so is -log_zero (1 - p_y), a
    multiple of the mean absolute error, which tolerates noise; p = softmax. ``alpha``, ``beta`` >= 0, one of them
    positive; the defaults are the paper's for CIFAR-100, and 0.1 and 1, slow to start, those for CIFAR-10. ``logits``
    (n, c), c >= 2, finite; ``target`` (n,) int64 in [0, c). Returns a scalar >= 0, or (n,) under ``reduction="none"``.
    Other input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        alpha: float = 6.0,
        beta: float = 0.1,
        log_zero: float = -4.0,
        reduction: Literal["mean", "sum", "none"] = "mean",
    ) -> None:
        super().__init__()
        if not (0 <= alpha < math.inf and 0 <= beta < math.inf and alpha + beta > 0):
            raise InputError(f"SymmetricCrossEntropyLoss: alpha={alpha}, beta={beta}; expected >= 0, one positive")
        if not -math.inf < log_zero < 0:
            raise InputError(f"SymmetricCrossEntropyLoss: log_zero={log_zero}; expected a finite number below 0")
        check_reduction("SymmetricCrossEntropyLoss", reduction)
        self.alpha, self.beta, self.log_zero, self.reduction = float(alpha), float(beta), float(log_zero), reduction

    def forward(self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``logits`` under ``target``."""
        check_logits("SymmetricCrossEntropyLoss", logits, target)
        log_p = F.log_softmax(logits, 1).gather(1, target[:, None])[:, 0]
        reverse = self.log_zero * torch.expm1(log_p)  # -A (1 - p_y)
        return reduced(self.beta * reverse - self.alpha * log_p, self.reduction)

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, beta={self.beta}, log_zero={self.log_zero}, reduction={self.reduction!r}"
