"""Calibration of each class against the rest, and how the classes are joined."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from assay.calibrate.base import CalibrationMap

FLOOR = 1e-12  # the least probability that a map gives, so that logits and log-likelihoods stay finite


class OneVsRestMap(CalibrationMap):
    """Class scores in [0, 1], calibrated one class against the rest, divided by their sum (Zadrozny & Elkan, 2002).

    A row of scores that are all 0 becomes uniform. Probabilities below 1e-12 are raised to it.
    """

    @abstractmethod
    def scores(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """For each class the probability that it is the label, before the rows are made to sum to 1."""

    def forward(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Calibrated logits, in float64."""
        scores = self.scores(logits)
        total = scores.sum(1, keepdim=True)
        p = torch.where(total > 0, scores / total.clamp_min(FLOOR), 1 / scores.shape[1])
        return p.clamp_min(FLOOR).log()


def interpolated(
    x: Float[Tensor, "n c"], knots: Float[Tensor, "c k"], values: Float[Tensor, "c k"]
) -> Float[Tensor, "n c"]:
    """For each column, the piecewise linear function through (knots, values), knots ascending; constant outside."""
    x = x.T.contiguous().clamp(knots[:, :1], knots[:, -1:])
    right = torch.searchsorted(knots, x).clamp(1, knots.shape[1] - 1)
    low, high = knots.gather(1, right - 1), knots.gather(1, right)
    width = high - low
    share = torch.where(width > 0, (x - low) / torch.where(width > 0, width, 1.0), 1.0)
    below, above = values.gather(1, right - 1), values.gather(1, right)
    return torch.lerp(below, above, share).T


def log_odds_parts(logits: Float[Tensor, "n c"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """ln p and ln(1 - p) of every class, exact also where p rounds to 1."""
    log_p = logits.log_softmax(1)
    which = log_p.argmax(1, keepdim=True)
    others = log_p.scatter(1, which, -math.inf).logsumexp(1, keepdim=True)
    small = log_p.scatter(1, which, -math.inf).exp()
    return log_p, torch.log1p(-small).scatter(1, which, others)
