"""Objectives on (logits, target), and what a small surrogate loss guarantees."""

from assay.losses.aaer import AAERLoss
from assay.losses.anyloss import AnyLoss, ComboLoss, SoftConfusion, soft_confusion
from assay.losses.binary_cross_entropy import BinaryCrossEntropy
from assay.losses.comp_sum import CompSumLoss
from assay.losses.dot_regression import DotRegressionLoss
from assay.losses.energies import energy_weights
from assay.losses.entropy_penalty import PredictionEntropyLoss
from assay.losses.h_consistency import (
    conditional_optimum,
    conditional_regret,
    gamma,
    minimizability_gap,
    t_transform,
    zero_one_bound,
)
from assay.losses.mart import MARTLoss
from assay.losses.weat import WEATLoss

__all__ = [
    "AAERLoss",
    "AnyLoss",
    "BinaryCrossEntropy",
    "ComboLoss",
    "CompSumLoss",
    "DotRegressionLoss",
    "MARTLoss",
    "PredictionEntropyLoss",
    "SoftConfusion",
    "WEATLoss",
    "conditional_optimum",
    "conditional_regret",
    "energy_weights",
    "gamma",
    "minimizability_gap",
    "soft_confusion",
    "t_transform",
    "zero_one_bound",
]
