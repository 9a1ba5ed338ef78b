"""Regularised adaptive prediction sets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from assay.calibrate import Outputs
from assay.certify.aps import APS
from assay.runtime.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RAPS(APS):
    """APS plus a penalty on classes ranked below the ``k`` most likely (Angelopoulos et al., 2021, arXiv:2009.14193).

    The penalty is ``lam`` * max(0, rank - k) / (c - k) for rank 1 to c, so that it grows up to ``lam`` whatever the
    number of classes (Gendler et al., 2022, "Adversarially robust conformal prediction"); the lambda of eq. 4 is
    lam / (c - k). Where c <= k nothing is penalised. Scores reach 1 + lam. Raises InputError unless lam is finite and
    >= 0 and k >= 0.
    """

    lam: float = 0.2
    k: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.lam < math.inf or self.k < 0:
            raise InputError(f"RAPS: lam = {self.lam}, k = {self.k}; expected a finite lam >= 0 and k >= 0")

    @property
    def top(self) -> float:
        return 1 + self.lam

    def scores(self, outputs: Outputs, u: Float[Tensor, "n 1"]) -> Float[Tensor, "n c"]:
        order = outputs.probabilities.argsort(dim=1, descending=True, stable=True)
        rank = torch.arange(1, outputs.classes + 1, dtype=torch.float64)
        penalty = self.lam * (rank - self.k).clamp_min(0) / max(outputs.classes - self.k, 1)
        base = super().scores(outputs, u)
        return base + torch.empty_like(base).scatter_(1, order, penalty.to(base).expand_as(base))
