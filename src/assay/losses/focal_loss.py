"""Focal loss."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.losses.pairs import check_logits, check_reduction, reduced
from assay.runtime.errors import InputError


class FocalLoss(nn.Module):
    """-(1 - p_y)^gamma log p_y, p = softmax (Lin et al., 2017, arXiv:1708.02002, eq. 4).

    ``gamma`` >= 0; 0 is cross-entropy. ``logits`` (n, c), c >= 2, finite; ``target`` (n,) int64 in [0, c). Returns a
    scalar >= 0, or (n,) under ``reduction="none"``. Other input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, gamma: float = 2.0, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        if not 0 <= gamma < math.inf:
            raise InputError(f"FocalLoss: gamma={gamma}; expected a finite number >= 0")
        check_reduction("FocalLoss", reduction)
        self.gamma, self.reduction = float(gamma), reduction

    def forward(self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``logits`` under ``target``."""
        check_logits("FocalLoss", logits, target)
        log_p = F.log_softmax(logits, 1).gather(1, target[:, None])[:, 0]
        # 1 - p from the logarithm; the floor keeps the slope of the power finite at p = 1.
        rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).tiny)
        return reduced(-(rest**self.gamma) * log_p, self.reduction)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, reduction={self.reduction!r}"
