"""Objectives on (logits, target), and what a small surrogate loss guarantees."""

from assay.losses.anyloss import AnyLoss, ComboLoss, SoftConfusion, soft_confusion
from assay.losses.binary_cross_entropy import BinaryCrossEntropy
from assay.losses.comp_sum import CompSumLoss
from assay.losses.dot_regression import DotRegressionLoss
from assay.losses.entropy_penalty import PredictionEntropyLoss
from assay.losses.h_consistency import (
    conditional_optimum,
    conditional_regret,
    gamma,
    minimizability_gap,
    t_transform,
    zero_one_bound,
)
from assay.losses.hyperbolic import HypCrossEntropy, HypPairwiseConfusion

__all__ = [
    "AnyLoss",
    "BinaryCrossEntropy",
    "ComboLoss",
    "CompSumLoss",
    "DotRegressionLoss",
    "HypCrossEntropy",
    "HypPairwiseConfusion",
    "PredictionEntropyLoss",
    "SoftConfusion",
    "conditional_optimum",
    "conditional_regret",
    "gamma",
    "minimizability_gap",
    "soft_confusion",
    "t_transform",
    "zero_one_bound",
]
