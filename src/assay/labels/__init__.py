"""Wrong and missing labels: finding the wrong ones, and training despite them or without labels."""

from assay.labels.audit import (
    Standing,
    consensus_from_votes,
    corrected_benchmark,
    crossover_prevalence,
    noise_prevalence_curve,
)
from assay.labels.backward_correction import BackwardCorrection
from assay.labels.base import Repair
from assay.labels.bayes_error import bayes_error_kde, bayes_error_knn, bayes_error_soft
from assay.labels.bootstrap import Bootstrap
from assay.labels.co_teaching import CoTeaching
from assay.labels.co_teaching_plus import CoTeachingPlus
from assay.labels.confident_learning import (
    ConfidentLearning,
    LabelNoise,
    confident_joint,
    estimate_joint,
    label_quality,
)
from assay.labels.cross_validate import cross_probabilities
from assay.labels.cutmix import CutMix
from assay.labels.decoupled_mixup import DecoupledMixup
from assay.labels.divide_mix import DivideMix
from assay.labels.early_stopped_mixup import EarlyStoppedMixup
from assay.labels.elr import ELR
from assay.labels.elr_plus import ELRPlus
from assay.labels.fixmatch import FixMatch
from assay.labels.flexmatch import FlexMatch
from assay.labels.forward_correction import ForwardCorrection
from assay.labels.freematch import FreeMatch
from assay.labels.gce import GCE
from assay.labels.label_smoothing import LabelSmoothing
from assay.labels.logit_adjustment import LogitAdjustment
from assay.labels.manifold_mixup import ManifoldMixup
from assay.labels.mismatch import make_mismatch_pool, mismatch_errors
from assay.labels.mixmatch import MixMatch
from assay.labels.mixup import Mixup
from assay.labels.nested_co_teaching import NestedCoTeaching
from assay.labels.nested_dropout import (
    NestedClassifier,
    NestedDropout,
    NoiseFit,
    noise_fit_curve,
    prefix_accuracy,
    prefix_logits,
    select_width,
)
from assay.labels.prune_and_retrain import PruneAndRetrain
from assay.labels.rand_augment import RandAugment
from assay.labels.rcal import RCAL
from assay.labels.robust_class_gaussians import FittedClassGaussians, RobustClassGaussians, mean_error_bound
from assay.labels.robust_surrogate import robust_surrogate
from assay.labels.rss import FittedRSS, RobustSelfSupervised, robust_margin_loss
from assay.labels.rss_bound import generalization_bound
from assay.labels.self_training import SelfTraining
from assay.labels.shrinkmatch import ShrinkMatch
from assay.labels.symmetric_ce import SymmetricCE
from assay.labels.transition import estimate_transition
from assay.labels.views import Cutout, Shift
from assay.labels.wad import WeightAwareDistillation, margin_weights, prototype_scores

__all__ = [
    "BackwardCorrection",
    "Bootstrap",
    "CoTeaching",
    "CoTeachingPlus",
    "ConfidentLearning",
    "CutMix",
    "Cutout",
    "DecoupledMixup",
    "DivideMix",
    "ELR",
    "ELRPlus",
    "EarlyStoppedMixup",
    "FittedClassGaussians",
    "FittedRSS",
    "FixMatch",
    "FlexMatch",
    "ForwardCorrection",
    "FreeMatch",
    "GCE",
    "LabelNoise",
    "LabelSmoothing",
    "LogitAdjustment",
    "ManifoldMixup",
    "MixMatch",
    "Mixup",
    "NestedClassifier",
    "NestedCoTeaching",
    "NestedDropout",
    "NoiseFit",
    "PruneAndRetrain",
    "RCAL",
    "RandAugment",
    "Repair",
    "RobustClassGaussians",
    "RobustSelfSupervised",
    "SelfTraining",
    "Shift",
    "ShrinkMatch",
    "Standing",
    "SymmetricCE",
    "WeightAwareDistillation",
    "bayes_error_kde",
    "bayes_error_knn",
    "bayes_error_soft",
    "confident_joint",
    "consensus_from_votes",
    "corrected_benchmark",
    "cross_probabilities",
    "crossover_prevalence",
    "estimate_joint",
    "estimate_transition",
    "generalization_bound",
    "label_quality",
    "make_mismatch_pool",
    "margin_weights",
    "mean_error_bound",
    "mismatch_errors",
    "noise_fit_curve",
    "noise_prevalence_curve",
    "prefix_accuracy",
    "prefix_logits",
    "prototype_scores",
    "robust_margin_loss",
    "robust_surrogate",
    "select_width",
]
