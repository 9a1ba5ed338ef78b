"""Comp-sum losses: one family from the sum-exponential loss over cross-entropy to the mean absolute error."""

from __future__ import annotations

import math
import warnings
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError


class CompSumLoss(nn.Module):
    """Comp-sum loss (Mao et al., 2023, arXiv:2304.07288, section 2): (p_y^(tau-1) - 1) / (1 - tau), p = softmax.

    ``tau`` >= 0: 0 is the sum-exponential loss 1/p_y - 1; 1 cross-entropy; in (1, 2) generalised cross-entropy with
    q = tau - 1; 2 the mean absolute error 1 - p_y. ``logits`` (n, c), c >= 2, finite; ``target`` (n,) int64 in [0, c).
    Returns a scalar >= 0, or (n,) under ``reduction="none"``. Below tau = 1 a confident error overflows: its exponent
    is then clamped (such a sample has no gradient) and a RuntimeWarning says how many were. Other input raises
    InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tau: float = 1.0, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        if not (math.isfinite(tau) and tau >= 0):
            raise InputError(f"CompSumLoss: tau={tau}; expected a finite number >= 0")
        if reduction not in ("mean", "sum", "none"):
            raise InputError(f"CompSumLoss: reduction={reduction!r}; expected mean, sum or none")
        self.tau, self.reduction = float(tau), reduction

    def forward(self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``logits`` under ``target``."""
        self._check(logits, target)
        log_p = F.log_softmax(logits, 1).gather(1, target[:, None])[:, 0]
        if self.tau == 1:
            loss = -log_p
        else:
            # expm1 keeps all digits for tau next to 1, where the quotient tends to -log p.
            loss = -torch.expm1(self._bounded((self.tau - 1) * log_p)) / (self.tau - 1)
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def _bounded(self, exponent: Tensor) -> Tensor:
        limit = math.log(torch.finfo(exponent.dtype).max) - 8  # room for the sum over a batch
        above = int((exponent > limit).sum())
        if above:
            warnings.warn(f"CompSumLoss: {above} exponents clamped at {limit:.0f}", RuntimeWarning, stacklevel=3)
        return exponent.clamp(max=limit)

    def _check(self, logits: Tensor, target: Tensor) -> None:
        if logits.dim() != 2 or len(logits) == 0 or logits.shape[1] < 2 or not logits.is_floating_point():
            shape = f"{logits.dtype} of shape {tuple(logits.shape)}"
            raise InputError(f"CompSumLoss: logits are {shape}; expected floats (n, c) with n >= 1, c >= 2")
        if not torch.isfinite(logits).all():
            raise InputError("CompSumLoss: logits hold NaN or infinite values; expected finite")
        check_labels("CompSumLoss", target, len(logits), logits.shape[1])

    def extra_repr(self) -> str:
        return f"tau={self.tau}, reduction={self.reduction!r}"
