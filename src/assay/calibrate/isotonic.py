"""Isotonic calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from assay.calibrate.base import Calibrator, Outputs
from assay.calibrate.one_vs_rest import OneVsRestMap, interpolated
from assay.runtime.spec import rebuildable


@rebuildable
class IsotonicMap(OneVsRestMap):
    """A rising piecewise linear function of each class's probability: ``knots_`` and ``values_`` (c, k)."""

    knots_: Tensor
    values_: Tensor

    def __init__(self, classes: int, knots: int) -> None:
        super().__init__()
        self.register_buffer("knots_", torch.zeros(classes, knots, dtype=torch.float64))
        self.register_buffer("values_", torch.zeros(classes, knots, dtype=torch.float64))

    @property
    def classes(self) -> int:
        """The number of classes c."""
        return len(self.knots_)

    def scores(self, logits: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """The calibrated probability of each class against the rest."""
        return interpolated(logits.softmax(1), self.knots_, self.values_)


@dataclass(frozen=True, kw_only=True)
class IsotonicCalibration(Calibrator):
    """The rising function of least squared error, for each class against the rest, normalised (Zadrozny & Elkan, 2002,
    "Transforming classifier scores into accurate multiclass probability estimates").

    Pool-adjacent-violators by scikit-learn, linear between its thresholds. Before they are normalised, class scores
    have the least Brier score of all rising functions, the identity among them. Equal scores of two classes are new
    ties: predictions can change.
    """

    objective: ClassVar[str] = "brier"
    guaranteed: ClassVar[bool] = False

    def _fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> IsotonicMap:
        p, labels = outputs.probabilities.numpy(), y.numpy()
        curves = [
            IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(p[:, k], (labels == k).astype(float))
            for k in range(outputs.classes)
        ]
        size = max(2, *(len(c.X_thresholds_) for c in curves))
        fitted = IsotonicMap(outputs.classes, size)
        for k, curve in enumerate(curves):
            rest = (0, size - len(curve.X_thresholds_))
            fitted.knots_[k] = torch.from_numpy(np.pad(curve.X_thresholds_, rest, "edge"))
            fitted.values_[k] = torch.from_numpy(np.pad(curve.y_thresholds_, rest, "edge"))
        return fitted
