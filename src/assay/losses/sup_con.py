"""The supervised contrastive loss."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from assay.runtime.checks import check_labels
from assay.runtime.errors import InputError


class SupConLoss(nn.Module):
    """-1 / |P(i)| sum over p in P(i) of log exp(z_i.z_p / tau) / sum over a in A(i) of exp(z_i.z_a / tau), z = h / |h|,
    averaged over the anchors i with a positive (Khosla et al., 2020, arXiv:2004.11362, eq. 2).

    A(i) is every other sample of the batch, P(i) those of the same label; a sample is never its own neighbour.
    ``features`` (n, d), d >= 2, finite; ``target`` (n,) int64. ``keys`` (m, d) with ``key_target`` (m,), features of
    earlier batches, join A and P of every anchor. Returns a scalar, 0 with a gradient of 0 where no anchor has a
    positive; under ``reduction="none"`` (n,), 0 for anchors without; "sum" is their sum. Raises InputError for
    ``tau`` <= 0, other shapes and keys without labels or labels without keys.
    """

    kind: ClassVar[str] = "loss"
    needs: ClassVar[tuple[str, ...]] = ()
    batchwise: ClassVar[bool] = True
    embeddings: ClassVar[bool] = True

    def __init__(self, tau: float = 0.1, reduction: Literal["mean", "sum", "none"] = "mean") -> None:
        super().__init__()
        if not 0 < tau < math.inf:
            raise InputError(f"SupConLoss: tau={tau}; expected a finite number > 0")
        if reduction not in ("mean", "sum", "none"):
            raise InputError(f"SupConLoss: reduction={reduction!r}; expected mean, sum or none")
        self.tau, self.reduction = float(tau), reduction

    def forward(
        self,
        features: Float[Tensor, "n d"],
        target: Int[Tensor, " n"],
        keys: Float[Tensor, "m d"] | None = None,
        key_target: Int[Tensor, " m"] | None = None,
    ) -> Float[Tensor, ...]:
        """The loss of ``features`` under ``target``."""
        self._check(features, target)
        others, labels = features, target
        if (keys is None) != (key_target is None):
            raise InputError("SupConLoss: one of keys and key_target is given; expected both or none")
        if keys is not None and key_target is not None:
            if keys.dim() != 2 or keys.shape[1] != features.shape[1]:
                raise InputError(f"SupConLoss: keys {tuple(keys.shape)}; expected (m, {features.shape[1]})")
            check_labels("SupConLoss, keys", key_target, len(keys))
            others, labels = torch.cat((features, keys)), torch.cat((target, key_target))
        near = F.normalize(features, dim=1) @ F.normalize(others, dim=1).T / self.tau
        itself = torch.eye(len(near), near.shape[1], dtype=torch.bool, device=near.device)
        log_p = near - near.masked_fill(itself, -math.inf).logsumexp(1, keepdim=True)
        positive = (target[:, None] == labels) & ~itself
        counts = positive.sum(1)
        loss = -torch.where(positive, log_p, 0.0).sum(1) / counts.clamp_min(1)
        if self.reduction == "none":
            return loss
        return loss.sum() / (counts > 0).sum().clamp_min(1) if self.reduction == "mean" else loss.sum()

    def _check(self, features: Tensor, target: Tensor) -> None:
        if features.dim() != 2 or len(features) == 0 or features.shape[1] < 2 or not features.is_floating_point():
            shape = f"{features.dtype} of shape {tuple(features.shape)}"
            raise InputError(f"SupConLoss: features are {shape}; expected floats (n, d) with n >= 1, d >= 2")
        if not torch.isfinite(features).all():
            raise InputError("SupConLoss: features hold NaN or infinite values; expected finite")
        check_labels("SupConLoss", target, len(features))

    def extra_repr(self) -> str:
        return f"tau={self.tau}, reduction={self.reduction!r}"
