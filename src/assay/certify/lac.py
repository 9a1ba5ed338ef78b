"""Least ambiguous set-valued classification."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from assay.calibrate import Outputs
from assay.certify.base import SetPredictor


@dataclass(frozen=True, kw_only=True)
class LAC(SetPredictor):
    """Score 1 - p_k: the smallest sets on average (Sadinle et al., 2019, arXiv:1609.00451); some may be empty."""

    def scores(self, outputs: Outputs, u: Float[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        return 1 - outputs.probabilities
