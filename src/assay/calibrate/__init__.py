"""Post-hoc calibration: make confidences mean what they say, and measure how far they do."""

from assay.calibrate.base import CalibrationMap, Calibrator, FittedCalibrator, Outputs, Recalibrated
from assay.calibrate.beta import BetaCalibration
from assay.calibrate.correctness import CorrectnessAwareLoss, narrow_wrong
from assay.calibrate.correctness_calibrator import CorrectnessAwareCalibrator, FittedCorrectnessAware
from assay.calibrate.d_mixup import DMixupTrainer, d_mixup_batch
from assay.calibrate.dirichlet import DirichletCalibration
from assay.calibrate.ensemble_temperature import EnsembleTemperatureScaling
from assay.calibrate.histogram import HistogramBinning
from assay.calibrate.isotonic import IsotonicCalibration
from assay.calibrate.matrix import MatrixScaling
from assay.calibrate.measures import Bins, adaptive_ece, brier, classwise_ece, ece, nll, reliability, top_brier
from assay.calibrate.miscalibration import (
    MiscalibrationSummary,
    classwise_miscalibration,
    miscalibration_score,
    summarise,
)
from assay.calibrate.msc_temperature import ClassTemperatures, MSCTemperatureScaling
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
from assay.calibrate.views import collect_views

__all__ = [
    "BetaCalibration",
    "Bins",
    "Calibrated",
    "CalibrationMap",
    "Calibrator",
    "ClassTemperatures",
    "CorrectnessAwareCalibrator",
    "CorrectnessAwareLoss",
    "DMixupTrainer",
    "DirichletCalibration",
    "EnsembleTemperatureScaling",
    "FittedCalibrator",
    "FittedCorrectnessAware",
    "HistogramBinning",
    "IsotonicCalibration",
    "MSCTemperatureScaling",
    "MatrixScaling",
    "MiscalibrationSummary",
    "Outputs",
    "OverlapDistribution",
    "Recalibrated",
    "SplineCalibration",
    "TemperatureScaling",
    "VectorScaling",
    "adaptive_ece",
    "brier",
    "classwise_ece",
    "classwise_miscalibration",
    "collect_views",
    "d_mixup_batch",
    "ece",
    "logit_gap_profile",
    "miscalibration_score",
    "narrow_wrong",
    "nll",
    "oracle_temperature",
    "overlap_gap",
    "paired_label_noise",
    "reliability",
    "summarise",
    "top_brier",
    "two_point_nll",
    "two_point_nll_noise",
]
