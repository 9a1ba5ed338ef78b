"""Bootstrapping: labels mixed with the network's own predictions."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.pairs import check_logits, check_reduction, reduced
from assay.runtime.errors import InputError


class BootstrapLoss(nn.Module):
    """Cross-entropy of the label ``beta`` q + (1 - ``beta``) r (Reed et al., 2014, arXiv:1412.6596, eq. 6-7).

    q is the given label; r the softmax itself (soft: a gradient goes through it, so that the term is the prediction's
    entropy) or, where ``hard``, the likeliest class. ``beta`` in [0, 1]; None is the paper's, 0.95 soft and 0.8 hard;
    1 is cross-entropy. ``logits`` (n, c), c >= 2, finite; ``target`` (n,) int64 in [0, c). Returns a scalar >= 0, or
    (n,) under ``reduction="none"``. Other input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, beta: float | None = None, hard: bool = False, reduction: Literal["mean", "sum", "none"] = "mean"
    ) -> None:
        super().__init__()
        chosen = (0.8 if hard else 0.95) if beta is None else float(beta)
        if not 0 <= chosen <= 1:
            raise InputError(f"BootstrapLoss: beta={beta}; expected a share in [0, 1]")
        check_reduction("BootstrapLoss", reduction)
        self.beta, self.hard, self.reduction = chosen, hard, reduction

    def forward(self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``logits`` under ``target``."""
        check_logits("BootstrapLoss", logits, target)
        log_p = F.log_softmax(logits, 1)
        given = -log_p.gather(1, target[:, None])[:, 0]
        own = -log_p.amax(1) if self.hard else -(log_p.exp() * log_p).sum(1)
        return reduced(self.beta * given + (1 - self.beta) * own, self.reduction)

    def extra_repr(self) -> str:
        return f"beta={self.beta}, hard={self.hard}, reduction={self.reduction!r}"
