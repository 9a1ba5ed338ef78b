"""Objectives on (logits, target), and what a small surrogate loss guarantees."""

from assay.losses.comp_sum import CompSumLoss
from assay.losses.dot_regression import DotRegressionLoss
from assay.losses.h_consistency import (
    conditional_optimum,
    conditional_regret,
    gamma,
    minimizability_gap,
    t_transform,
    zero_one_bound,
)

__all__ = [
    "CompSumLoss",
    "DotRegressionLoss",
    "conditional_optimum",
    "conditional_regret",
    "gamma",
    "minimizability_gap",
    "t_transform",
    "zero_one_bound",
]
