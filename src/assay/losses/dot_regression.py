"""Dot regression: the loss of a classifier that is held fixed."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError


class DotRegressionLoss(nn.Module):
    """(w_y.h - sqrt(e_w e_h))^2 / (2 sqrt(e_w e_h)) (Yang et al., 2022, arXiv:2203.09081, eq. 7).

    For a classifier whose rows have norm sqrt(``e_w``) and features of norm sqrt(``e_h``) (dynamics.ETFClassifier) this
    is sqrt(e_w e_h) (1 - cos)^2 / 2. ``logits`` (n, c) w_k.h, c >= 2, finite; ``target`` (n,) int64 in [0, c). Only the
    logit of the target counts: its gradient pulls a feature to its own row and pushes none away, so that the number of
    samples of other classes has no say. Returns a scalar >= 0, or (n,) under ``reduction="none"``. Without features of
    bounded norm it has no reason to rank the target first. Other input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, e_w: float = 1.0, e_h: float = 1.0, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        if not (0 < e_w < math.inf and 0 < e_h < math.inf):
            raise InputError(f"DotRegressionLoss: e_w={e_w}, e_h={e_h}; expected finite numbers > 0")
        if reduction not in ("mean", "sum", "none"):
            raise InputError(f"DotRegressionLoss: reduction={reduction!r}; expected mean, sum or none")
        self.e_w, self.e_h, self.reduction = float(e_w), float(e_h), reduction

    def forward(self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``logits`` under ``target``."""
        if logits.dim() != 2 or len(logits) == 0 or logits.shape[1] < 2 or not logits.is_floating_point():
            shape = f"{logits.dtype} of shape {tuple(logits.shape)}"
            raise InputError(f"DotRegressionLoss: logits are {shape}; expected floats (n, c) with n >= 1, c >= 2")
        if not torch.isfinite(logits).all():
            raise InputError("DotRegressionLoss: logits hold NaN or infinite values; expected finite")
        check_labels("DotRegressionLoss", target, len(logits), logits.shape[1])
        top = math.sqrt(self.e_w * self.e_h)
        loss = (logits.gather(1, target[:, None])[:, 0] - top).square() / (2 * top)
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def extra_repr(self) -> str:
        return f"e_w={self.e_w}, e_h={self.e_h}, reduction={self.reduction!r}"
