"""Training under symmetric cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from assay.data import Data
from assay.labels.robust_loss import RobustLoss
from assay.losses import SymmetricCrossEntropyLoss


@dataclass(frozen=True, kw_only=True)
class SymmetricCE(RobustLoss):
    """Training under SymmetricCrossEntropyLoss (Wang et al., 2019, arXiv:1908.06112); its parameters and errors."""

    alpha: float = 6.0
    beta: float = 0.1
    log_zero: float = -4.0

    def __post_init__(self) -> None:
        SymmetricCrossEntropyLoss(self.alpha, self.beta, self.log_zero)  # refuses what is out of range

    def loss(self, data: Data) -> nn.Module:
        return SymmetricCrossEntropyLoss(self.alpha, self.beta, self.log_zero)
