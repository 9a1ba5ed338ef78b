"""Beta calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from assay.calibrate.base import Calibrator, Outputs
from assay.calibrate.one_vs_rest import OneVsRestMap, log_odds_parts
from assay.runtime.spec import rebuildable

LEAST = float(np.log(np.finfo(float).eps))  # ln p and ln(1 - p) are cut here, as in the authors' code


@rebuildable
class BetaMap(OneVsRestMap):
    """sigmoid(a ln p - b ln(1 - p) + m) of each class's probability: ``a_``, ``b_`` >= 0 and ``m_`` (c,)."""

    a_: Tensor
    b_: Tensor
    m_: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        for name in ("a_", "b_", "m_"):
            self.register_buffer(name, torch.zeros(classes, dtype=torch.float64))

    @property
    def classes(self) -> int:
        """The number of classes c."""
        return len(self.m_)

    def scores(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The calibrated probability of each class against the rest."""
        log_p, log_rest = (part.clamp_min(LEAST) for part in log_odds_parts(logits))
        return torch.sigmoid(self.a_ * log_p - self.b_ * log_rest + self.m_)


@dataclass(frozen=True, kw_only=True)
class BetaCalibration(Calibrator):
    """sigmoid(a ln p - b ln(1 - p) + m), a and b >= 0: the map of Beta-distributed scores (Kull, Silva Filho & Flach,
    2017, "Beta calibration"), for each class against the rest, normalised.

    Maximum likelihood under the constraint, which is convex; the authors fit without it and set a negative coefficient
    to 0. Before they are normalised, class scores have a log loss no higher than the model's, which is a = b = 1,
    m = 0. A class whose samples are separable from the rest gets steep coefficients: the search stops where its slope
    is below 1e-8.
    """

    objective: ClassVar[str] = "nll"
    guaranteed: ClassVar[bool] = False

    def _fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> BetaMap:
        log_p, log_rest = (part.clamp_min(LEAST).numpy() for part in log_odds_parts(outputs.logits.double()))
        n, c = log_p.shape
        target = np.eye(c)[y.numpy()]

        def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
            a, b, m = flat.reshape(3, c)
            t = a * log_p - b * log_rest + m
            error = (expit(t) - target) / n
            slope = np.stack([(error * log_p).sum(0), -(error * log_rest).sum(0), error.sum(0)])
            return float((np.logaddexp(0, t) - target * t).sum() / n), slope.ravel()

        start = np.repeat([1.0, 1.0, 0.0], c)
        bounds = [(0.0, None)] * (2 * c) + [(None, None)] * c
        options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-15, "gtol": 1e-8}
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
        fitted = BetaMap(c)
        for name, values in zip(("a_", "b_", "m_"), found.reshape(3, c), strict=True):
            getattr(fitted, name).copy_(torch.from_numpy(values))
        return fitted
