"""Randomly smoothed conformal prediction with a guarantee for finitely many draws."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from assay.certify.rscp import RSCP
from assay.certify.smoothed_scores import SmoothedScores
from assay.runtime.errors import InputError, unknown

BOUNDS = ("bernstein", "hoeffding")


def hoeffding_bound(draws: int, beta: float) -> float:
    """sqrt(ln(1 / beta) / (2 N)): a mean of N draws in [0, 1] is off to one side by more with probability <= beta."""
    return math.sqrt(math.log(1 / beta) / (2 * draws))


def bernstein_bound(variance: Float[Tensor, "*s"], draws: int, beta: float) -> Float[Tensor, "*s"]:
    """sqrt(2 V t / N) + 7 t / (3 (N - 1)) with t = ln(2 / beta) and V the unbiased sample variance.

    The empirical Bernstein bound (Maurer & Pontil, 2009, arXiv:0907.3740, theorem 4); N >= 2.
    """
    t = math.log(2 / beta)
    return (2 * variance * t / draws).sqrt() + 7 * t / (3 * (draws - 1))


@dataclass(frozen=True, kw_only=True)
class RSCPPlus(RSCP):
    """RSCP whose guarantee holds for Monte-Carlo scores (Yan et al., 2024, arXiv:2404.19651, section 3).

    The threshold tau is set at alpha - 2 ``beta``; Hoeffding's b_H is added to it, and the empirical Bernstein bound of
    the test score (``bound`` "hoeffding": b_H) taken from that score; each fails with probability at most beta. Then
    P(y in set(x')) >= 1 - alpha for every x' within eps of x, chosen before its noise is drawn, over data and noise.
    With transform = a fitted PTT the variance is that of the transformed scores. Options, shapes and errors: see RSCP;
    InputError also unless 0 < 2 beta < alpha.
    """

    beta: float = 0.001
    bound: Literal["bernstein", "hoeffding"] = "bernstein"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < 2 * self.beta < self.alpha:
            raise InputError(f"RSCPPlus: beta = {self.beta}, alpha = {self.alpha}; expected 0 < 2 beta < alpha")
        if self.bound not in BOUNDS:
            raise unknown("bound of RSCPPlus", str(self.bound), BOUNDS)

    @property
    def miscoverage(self) -> float:
        return self.alpha - 2 * self.beta

    def calibration_slack(self, draws: int) -> float:
        return hoeffding_bound(draws, self.beta)

    def score_slack(self, smoothed: SmoothedScores) -> Float[Tensor, "n c"]:
        if self.bound == "hoeffding":
            return torch.full_like(smoothed.mean, hoeffding_bound(smoothed.draws, self.beta))
        return bernstein_bound(smoothed.variance, smoothed.draws, self.beta)
