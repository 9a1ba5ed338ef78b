"""Backward correction with an estimated transition matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from assay.labels.loss_correction import LossCorrection
from assay.losses import BackwardCorrectionLoss
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class BackwardCorrection(LossCorrection):
    """Training under BackwardCorrectionLoss with an estimated T; stages and errors are LossCorrection's.

    T is mixed with ``prior`` in [0, 1] of the identity before it is inverted, the paper's remedy where
    an estimate has no inverse or a bad one (the paper names no share).
    """

    prior: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.prior <= 1:
            raise InputError(f"BackwardCorrection: prior={self.prior}; expected a share in [0, 1]")

    def corrected(self, transition: Tensor) -> nn.Module:
        noiseless = torch.eye(len(transition)).to(transition)
        return BackwardCorrectionLoss((1 - self.prior) * transition + self.prior * noiseless)
