"""Calibration by a spline through the cumulative calibration error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.interpolate import CubicSpline
from torch import Tensor

from assay.calibrate.base import CalibrationMap, Calibrator, Outputs
from assay.calibrate.one_vs_rest import FLOOR, interpolated
from assay.runtime.errors import InputError
from assay.runtime.spec import rebuildable


@rebuildable
class SplineMap(CalibrationMap):
    """The top probability s becomes the function through (``knots_``, ``values_``) (k,) at s; the others keep their
    proportions."""

    knots_: Tensor
    values_: Tensor

    def __init__(self, classes: int, knots: int) -> None:
        super().__init__()
        self._classes = classes
        self.register_buffer("knots_", torch.zeros(knots, dtype=torch.float64))
        self.register_buffer("values_", torch.zeros(knots, dtype=torch.float64))

    @property
    def classes(self) -> int:
        """The number of classes c."""
        return self._classes

    def forward(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Calibrated logits, in float64."""
        log_p = logits.log_softmax(1)
        highest, which = log_p.max(1, keepdim=True)
        score = interpolated(highest.exp(), self.knots_[None], self.values_[None])
        others = log_p.scatter(1, which, -torch.inf)
        rest = others - others.logsumexp(1, keepdim=True) + (1 - score).clamp_min(FLOOR).log()
        return rest.scatter(1, which, score.clamp_min(FLOOR).log()).clamp_min(np.log(FLOOR))


@dataclass(frozen=True, kw_only=True)
class SplineCalibration(Calibrator):
    """The top probability plus the slope of a spline through the cumulative calibration error (Gupta et al., 2021,
    arXiv:2006.12800, section 4).

    Samples are sorted by their top probability s; at the share t of samples, h(t) is 1 / n times the number of samples
    below that are classified right less the sum of their s. A natural cubic spline with ``knots`` >= 3 even knots is
    fitted to h by least squares, and s(t) + h'(t) is the calibrated s, linear between samples, cut to [0, 1]. Samples
    of equal s count with their mean, whatever their order. This is the form of the authors' code, which calibrates the
    top class alone; here the others share what is left in proportion, and take over where their part is larger. Raises
    InputError for fewer than three knots.
    """

    objective: ClassVar[str] = "ece"
    guaranteed: ClassVar[bool] = False

    knots: int = 6

    def __post_init__(self) -> None:
        if self.knots < 3:
            raise InputError(f"SplineCalibration: knots={self.knots}; expected at least 3")

    def _fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> SplineMap:
        score, guess = (part.numpy() for part in outputs.probabilities.max(1))
        levels, group, count = np.unique(score, return_inverse=True, return_counts=True)
        gap = np.bincount(group, guess == y.numpy()) / count - levels
        slope = spline_slope(np.cumsum(np.repeat(gap, count)) / len(score), self.knots)
        mean = np.add.reduceat(slope, np.cumsum(count) - count) / count
        fitted = SplineMap(outputs.classes, max(2, len(levels)))
        fitted.knots_.copy_(torch.from_numpy(levels))
        fitted.values_.copy_(torch.from_numpy(np.clip(levels + mean, 0, 1)))
        return fitted


def spline_slope(h: Float[np.ndarray, " n"], knots: int) -> Float[np.ndarray, " n"]:
    """The derivative, at n even points of [0, 1], of the natural cubic spline closest to ``h`` there."""
    t = np.linspace(0, 1, len(h))
    basis = CubicSpline(np.linspace(0, 1, knots), np.eye(knots), bc_type="natural")
    weights = np.linalg.lstsq(basis(t), h, rcond=None)[0]
    return basis(t, 1) @ weights
