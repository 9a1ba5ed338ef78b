"""Representations learned without labels, and what they are read with."""

from assay.represent.augment import Augmentation
from assay.represent.simsiam import SelfSupervised, SimSiam, linear_classifier, simsiam_loss

__all__ = [
    "Augmentation",
    "SelfSupervised",
    "SimSiam",
    "linear_classifier",
    "simsiam_loss",
]
