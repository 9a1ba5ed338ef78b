"""Adapting what was trained elsewhere: heads on the features of a frozen encoder."""

from assay.adapt.base import FeatureTuner, TunedFeatures
from assay.adapt.linear_tuning import LinearTuning
from assay.adapt.mlp_tuning import MLPTuning
from assay.adapt.nmtune import NMTune, nmtune_losses
from assay.adapt.nmtune_head import NMTuneHead

__all__ = [
    "FeatureTuner",
    "LinearTuning",
    "MLPTuning",
    "NMTune",
    "NMTuneHead",
    "TunedFeatures",
    "nmtune_losses",
]
