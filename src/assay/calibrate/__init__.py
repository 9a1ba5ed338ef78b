"""Post-hoc calibration: make confidences mean what they say, and measure how far they do."""

from assay.calibrate.base import Calibrator, FittedCalibrator, Outputs
from assay.calibrate.correctness import CorrectnessAwareLoss, narrow_wrong
from assay.calibrate.correctness_calibrator import CorrectnessAwareCalibrator, FittedCorrectnessAware
from assay.calibrate.measures import Bins, adaptive_ece, brier, classwise_ece, ece, nll, reliability, top_brier
from assay.calibrate.temperature import Calibrated, TemperatureScaling
from assay.calibrate.views import collect_views

__all__ = [
    "Bins",
    "Calibrated",
    "Calibrator",
    "CorrectnessAwareCalibrator",
    "CorrectnessAwareLoss",
    "FittedCalibrator",
    "FittedCorrectnessAware",
    "Outputs",
    "TemperatureScaling",
    "adaptive_ece",
    "brier",
    "classwise_ece",
    "collect_views",
    "ece",
    "narrow_wrong",
    "nll",
    "reliability",
    "top_brier",
]
