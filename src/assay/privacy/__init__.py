"""What a model gives away: membership of its training data, and the platform that it is served on."""

from assay.privacy.base import Reference
from assay.privacy.calibrated_loss import CalibratedLoss
from assay.privacy.class_loss import ClassLoss
from assay.privacy.lira import LiRA
from assay.privacy.loss_threshold import LossThreshold
from assay.privacy.platform import (
    BorderInputs,
    Identifier,
    LogitFingerprint,
    float_bits,
    simulate_platform,
    split_float,
)
from assay.privacy.shadows import Shadows, train_shadows

__all__ = [
    "BorderInputs",
    "CalibratedLoss",
    "ClassLoss",
    "Identifier",
    "LiRA",
    "LogitFingerprint",
    "LossThreshold",
    "Reference",
    "Shadows",
    "float_bits",
    "simulate_platform",
    "split_float",
    "train_shadows",
]
