"""Adapting what was trained elsewhere: heads on the features of a frozen encoder, and further training."""

from assay.adapt.base import FeatureTuner, TunedFeatures
from assay.adapt.confidence_curriculum import ConfidenceCurriculum, smooth_labels
from assay.adapt.linear_tuning import LinearTuning
from assay.adapt.mlp_tuning import MLPTuning
from assay.adapt.nmtune import NMTune, nmtune_losses
from assay.adapt.nmtune_head import NMTuneHead

__all__ = [
    "ConfidenceCurriculum",
    "FeatureTuner",
    "LinearTuning",
    "MLPTuning",
    "NMTune",
    "NMTuneHead",
    "TunedFeatures",
    "nmtune_losses",
    "smooth_labels",
]
