"""Training under logit-adjusted cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from assay.data import Data
from assay.labels.robust_loss import RobustLoss
from assay.losses import LogitAdjustedLoss


@dataclass(frozen=True, kw_only=True)
class LogitAdjustment(RobustLoss):
    """Training under LogitAdjustedLoss at the shares of the given labels (Menon et al., 2020, arXiv:2007.07314).

    Noisy labels have other shares than the true ones: the correction is that of the noise's pull towards some classes.
    A class without a sample counts as one of one sample. ``tau`` >= 0; InputError otherwise.
    """

    tau: float = 1.0

    def __post_init__(self) -> None:
        LogitAdjustedLoss(tau=self.tau)  # refuses what is out of range

    def loss(self, data: Data) -> nn.Module:
        counts = torch.bincount(data.y, minlength=len(data.classes)).clamp_min(1)
        return LogitAdjustedLoss(counts.tolist(), self.tau)
