"""Wrong labels: finding them with out-of-sample probabilities, and training without them."""

from assay.labels.base import Repair
from assay.labels.confident_learning import (
    ConfidentLearning,
    LabelNoise,
    confident_joint,
    estimate_joint,
    label_quality,
)
from assay.labels.cross_validate import cross_probabilities
from assay.labels.elr import ELR
from assay.labels.prune_and_retrain import PruneAndRetrain

__all__ = [
    "ConfidentLearning",
    "ELR",
    "LabelNoise",
    "PruneAndRetrain",
    "Repair",
    "confident_joint",
    "cross_probabilities",
    "estimate_joint",
    "label_quality",
]
