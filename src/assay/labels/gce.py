"""Generalised cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from assay.data import Data
from assay.labels.robust_loss import RobustLoss
from assay.losses import CompSumLoss
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class GCE(RobustLoss):
    """Training under (1 - p_y^q) / q, p = softmax (Zhang & Sabuncu, 2018, arXiv:1805.07836, eq. 6, "L_q").

    ``q`` in (0, 1]: towards 0 it is cross-entropy, at 1 the mean absolute error 1 - p_y. It is CompSumLoss at tau =
    1 + q. The paper's variant that also drops samples of low p_y is not included. InputError for another q.
    """

    q: float = 0.7

    def __post_init__(self) -> None:
        if not 0 < self.q <= 1:
            raise InputError(f"GCE: q={self.q}; expected a number in (0, 1]")

    def loss(self, data: Data) -> nn.Module:
        return CompSumLoss(1 + self.q)
