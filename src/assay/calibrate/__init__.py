"""Post-hoc calibration: make confidences mean what they say, and measure how far they do."""

from assay.calibrate.base import CalibrationMap, Calibrator, FittedCalibrator, Outputs, Recalibrated
from assay.calibrate.beta import BetaCalibration
from assay.calibrate.d_mixup import DMixupTrainer, d_mixup_batch
from assay.calibrate.dirichlet import DirichletCalibration
from assay.calibrate.ensemble_temperature import EnsembleTemperatureScaling
from assay.calibrate.histogram import HistogramBinning
from assay.calibrate.isotonic import IsotonicCalibration
from assay.calibrate.matrix import MatrixScaling
from assay.calibrate.measures import Bins, adaptive_ece, brier, classwise_ece, ece, nll, reliability
from assay.calibrate.overlap import (
    OverlapDistribution,
    oracle_temperature,
    paired_label_noise,
    two_point_nll,
    two_point_nll_noise,
)
from assay.calibrate.overlap_gap import logit_gap_profile, overlap_gap
from assay.calibrate.spline import SplineCalibration
from assay.calibrate.temperature import Calibrated, TemperatureScaling
from assay.calibrate.vector import VectorScaling

__all__ = [
    "BetaCalibration",
    "Bins",
    "Calibrated",
    "CalibrationMap",
    "Calibrator",
    "DMixupTrainer",
    "DirichletCalibration",
    "EnsembleTemperatureScaling",
    "FittedCalibrator",
    "HistogramBinning",
    "IsotonicCalibration",
    "MatrixScaling",
    "Outputs",
    "OverlapDistribution",
    "Recalibrated",
    "SplineCalibration",
    "TemperatureScaling",
    "VectorScaling",
    "adaptive_ece",
    "brier",
    "classwise_ece",
    "d_mixup_batch",
    "ece",
    "logit_gap_profile",
    "nll",
    "oracle_temperature",
    "overlap_gap",
    "paired_label_noise",
    "reliability",
    "two_point_nll",
    "two_point_nll_noise",
]
