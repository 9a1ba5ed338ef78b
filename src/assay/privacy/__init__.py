"""What a model gives away about its training data: membership inference."""

from assay.privacy.base import Reference
from assay.privacy.calibrated_loss import CalibratedLoss
from assay.privacy.class_loss import ClassLoss
from assay.privacy.lira import LiRA
from assay.privacy.loss_threshold import LossThreshold
from assay.privacy.shadows import Shadows, train_shadows

__all__ = [
    "CalibratedLoss",
    "ClassLoss",
    "LiRA",
    "LossThreshold",
    "Reference",
    "Shadows",
    "train_shadows",
]
