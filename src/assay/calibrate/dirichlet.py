"""Dirichlet calibration."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor

from assay.calibrate.affine import AffineMap, check_strengths, fit_affine
from assay.calibrate.base import Calibrator, Outputs


@dataclass(frozen=True, kw_only=True)
class DirichletCalibration(Calibrator):
    """softmax(W ln p + b) on probabilities p: the calibration map of Dirichlet-distributed p, in its linear form (Kull
    et al., 2019, arXiv:1910.12656, section 3), fitted by maximum likelihood with ODIR (section 4).

    It differs from matrix scaling where the rows of W differ in their sums. The penalty is strength x (mean of squared
    off-diagonal W + mean of squared b), of which ``strengths`` are tried by cross-validation in ``folds`` parts; the
    paper tries a grid for each of the two. c (c + 1) numbers are learned. Raises InputError for negative strengths and
    fewer than two folds.
    """

    strengths: tuple[float, ...] = (1e-3, 1e-2, 0.1, 1.0, 10.0)
    folds: int = 3

    def __post_init__(self) -> None:
        check_strengths("DirichletCalibration", self.strengths, self.folds)

    def _fit(self, outputs: Outputs, y: Int[Tensor, " n"]) -> AffineMap:
        return fit_affine(outputs, y, log_probabilities=True, strengths=self.strengths, folds=self.folds)
