"""Post-hoc calibration: make confidences mean what they say, and measure how far they do."""

from assay.calibrate.base import Calibrator, FittedCalibrator, Outputs
from assay.calibrate.measures import Bins, adaptive_ece, brier, classwise_ece, ece, nll, reliability
from assay.calibrate.temperature import Calibrated, TemperatureScaling

__all__ = [
    "Bins",
    "Calibrated",
    "Calibrator",
    "FittedCalibrator",
    "Outputs",
    "TemperatureScaling",
    "adaptive_ece",
    "brier",
    "classwise_ece",
    "ece",
    "nll",
    "reliability",
]
