"""Objectives on (logits, target), and what a small surrogate loss guarantees."""

from assay.losses.aaer import AAERLoss
from assay.losses.aggregate import BagLoss, InstanceBagLoss, InterpolatedBagLoss
from assay.losses.aggregate_regression import AggregateFit, AggregateLinearRegression
from assay.losses.aggregate_risk import Interpolation, Risk, interpolated_risk, optimal_interpolation
from assay.losses.anyloss import AnyLoss, ComboLoss, SoftConfusion, soft_confusion
from assay.losses.backward_correction import BackwardCorrectionLoss
from assay.losses.binary_cross_entropy import BinaryCrossEntropy
from assay.losses.bootstrap import BootstrapLoss
from assay.losses.class_balance import DeferredReweighting, class_balanced_weights
from assay.losses.comp_sum import CompSumLoss
from assay.losses.contrastive import InfoNCE
from assay.losses.decoupled_mixup import DecoupledBCELoss, DecoupledMixupLoss, decoupled_scores
from assay.losses.dependency import CPCLoss, WPCLoss, gradient_penalty
from assay.losses.dot_regression import DotRegressionLoss
from assay.losses.energies import energy_weights
from assay.losses.ensloss import EnsLoss, inverse_box_cox
from assay.losses.entropy_penalty import PredictionEntropyLoss
from assay.losses.exponential import ExponentialLoss
from assay.losses.focal_loss import FocalLoss
from assay.losses.forward_correction import ForwardCorrectionLoss
from assay.losses.h_consistency import (
    conditional_optimum,
    conditional_regret,
    gamma,
    minimizability_gap,
    t_transform,
    zero_one_bound,
)
from assay.losses.hard_contrastive import HardContrastive
from assay.losses.hinge import HingeLoss
from assay.losses.hyperbolic import HypCrossEntropy, HypPairwiseConfusion
from assay.losses.kernel_bayes_error import KernelBayesError
from assay.losses.kl_dro import KLDROLoss, dro_weights
from assay.losses.ldam_loss import LDAMLoss
from assay.losses.logistic_bound import logistic_h_bound
from assay.losses.logit_adjusted import LogitAdjustedLoss
from assay.losses.mann_whitney import MannWhitneyLoss
from assay.losses.margin import check_derivatives, is_classification_calibrated
from assay.losses.mart import MARTLoss
from assay.losses.multiple_negatives import MultipleNegativesLoss
from assay.losses.one_hot_squared import OneHotSquaredLoss
from assay.losses.shrink import ShrinkLoss, ShrinkResult, shrink_targets
from assay.losses.simple_contrastive import SimpleContrastive
from assay.losses.spherical_linear import SphericalLinear
from assay.losses.spherical_softmax import SphericalSoftmaxLoss
from assay.losses.sup_con import SupConLoss
from assay.losses.supremix import MixIndex, SupReMixLoss, make_mixtures
from assay.losses.symmetric_cross_entropy import SymmetricCrossEntropyLoss
from assay.losses.taylor_softmax import TaylorSoftmaxLoss
from assay.losses.tcm import TCMLoss
from assay.losses.weat import WEATLoss
from assay.losses.weighted_sup_con import WeightedSupConRegressionLoss
from assay.losses.z_loss import ZLoss

__all__ = [
    "AAERLoss",
    "AggregateFit",
    "AggregateLinearRegression",
    "AnyLoss",
    "BackwardCorrectionLoss",
    "BagLoss",
    "BinaryCrossEntropy",
    "BootstrapLoss",
    "CPCLoss",
    "ComboLoss",
    "CompSumLoss",
    "DecoupledBCELoss",
    "DecoupledMixupLoss",
    "DeferredReweighting",
    "DotRegressionLoss",
    "EnsLoss",
    "ExponentialLoss",
    "FocalLoss",
    "ForwardCorrectionLoss",
    "HardContrastive",
    "HingeLoss",
    "HypCrossEntropy",
    "HypPairwiseConfusion",
    "InfoNCE",
    "InstanceBagLoss",
    "InterpolatedBagLoss",
    "Interpolation",
    "KLDROLoss",
    "KernelBayesError",
    "LDAMLoss",
    "LogitAdjustedLoss",
    "MARTLoss",
    "MannWhitneyLoss",
    "MixIndex",
    "MultipleNegativesLoss",
    "OneHotSquaredLoss",
    "PredictionEntropyLoss",
    "Risk",
    "ShrinkLoss",
    "ShrinkResult",
    "SimpleContrastive",
    "SoftConfusion",
    "SphericalLinear",
    "SphericalSoftmaxLoss",
    "SupConLoss",
    "SupReMixLoss",
    "SymmetricCrossEntropyLoss",
    "TCMLoss",
    "TaylorSoftmaxLoss",
    "WEATLoss",
    "WPCLoss",
    "WeightedSupConRegressionLoss",
    "ZLoss",
    "check_derivatives",
    "class_balanced_weights",
    "conditional_optimum",
    "conditional_regret",
    "decoupled_scores",
    "dro_weights",
    "energy_weights",
    "gamma",
    "gradient_penalty",
    "interpolated_risk",
    "inverse_box_cox",
    "is_classification_calibrated",
    "logistic_h_bound",
    "make_mixtures",
    "minimizability_gap",
    "optimal_interpolation",
    "shrink_targets",
    "soft_confusion",
    "t_transform",
    "zero_one_bound",
]
