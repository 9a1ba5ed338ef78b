"""Adaptive prediction sets."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.calibrate import Outputs
from assay.certify.base import SetPredictor


@dataclass(frozen=True, kw_only=True)
class APS(SetPredictor):
    """Score of class k: the mass of the classes ranked before it plus a random share u of its own.

    Romano, Sesia & Candès, 2020, arXiv:2006.02544, eq. 5-7. Not ``randomized``: u = 1, the whole of its own mass.
    """

    randomized: bool = True

    def scores(self, outputs: Outputs, u: Float[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        ordered, order = outputs.probabilities.sort(dim=1, descending=True, stable=True)
        own = u * ordered if self.randomized else ordered
        return torch.empty_like(ordered).scatter_(1, order, ordered.cumsum(1) - ordered + own)
