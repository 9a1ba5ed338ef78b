"""Backward correction with an estimated transition matrix."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from assay.labels.loss_correction import LossCorrection
from assay.losses import BackwardCorrectionLoss


@dataclass(frozen=True, kw_only=True)
class BackwardCorrection(LossCorrection):
    """Training under BackwardCorrectionLoss with an estimated T; stages, parameters and errors are LossCorrection's."""

    def corrected(self, transition: Tensor) -> nn.Module:
        return BackwardCorrectionLoss(transition)
