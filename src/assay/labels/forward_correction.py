"""Forward correction with an estimated transition matrix."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from assay.labels.loss_correction import LossCorrection
from assay.losses import ForwardCorrectionLoss


@dataclass(frozen=True, kw_only=True)
class ForwardCorrection(LossCorrection):
    """Training under ForwardCorrectionLoss with an estimated T; stages, parameters and errors are LossCorrection's."""

    def corrected(self, transition: Tensor) -> nn.Module:
        return ForwardCorrectionLoss(transition)
