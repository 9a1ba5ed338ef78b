"""Cross-entropy with a penalty on the entropy of the prediction."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError


class PredictionEntropyLoss(nn.Module):
    """Cross-entropy + ``lam`` x entropy of the predicted distribution (Cubuk et al., 2017, arXiv:1711.02846).

    Less entropy is a larger gap between the two largest logits, and so less adversarial error at small perturbations;
    part of the gain may be gradients that vanish: check it with attacks that follow the log-odds, or none. ``logits``
    (n, c), c >= 2, finite; ``target`` (n,) int64 in [0, c); ``lam`` >= 0, which the paper tunes (0 is cross-entropy).
    Returns a scalar >= 0 in nats, or (n,) under ``reduction="none"``. Other input raises InputError.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, lam: float = 1.0, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        if not 0 <= lam < math.inf:
            raise InputError(f"PredictionEntropyLoss: lam={lam}; expected a finite number >= 0")
        if reduction not in ("mean", "sum", "none"):
            raise InputError(f"PredictionEntropyLoss: reduction={reduction!r}; expected mean, sum or none")
        self.lam, self.reduction = float(lam), reduction

    def forward(self, logits: Float[Tensor, "n c"], target: Int[Tensor, " n"]) -> Float[Tensor, ...]:
        """The loss of ``logits`` under ``target``."""
        if logits.dim() != 2 or len(logits) == 0 or logits.shape[1] < 2 or not logits.is_floating_point():
            shape = f"{logits.dtype} of shape {tuple(logits.shape)}"
            raise InputError(f"PredictionEntropyLoss: logits are {shape}; expected floats (n, c) with n >= 1, c >= 2")
        if not torch.isfinite(logits).all():
            raise InputError("PredictionEntropyLoss: logits hold NaN or infinite values; expected finite")
        check_labels("PredictionEntropyLoss", target, len(logits), logits.shape[1])
        log_p = F.log_softmax(logits, 1)
        entropy = -(log_p.exp() * log_p).sum(1)
        loss = self.lam * entropy - log_p.gather(1, target[:, None])[:, 0]
        if self.reduction == "none":
            return loss
        return loss.mean() if self.reduction == "mean" else loss.sum()

    def extra_repr(self) -> str:
        return f"lam={self.lam}, reduction={self.reduction!r}"
