"""Wrong labels: finding them with out-of-sample probabilities, and training without them."""

from assay.labels.audit import (
    Standing,
    consensus_from_votes,
    corrected_benchmark,
    crossover_prevalence,
    noise_prevalence_curve,
)
from assay.labels.base import Repair
from assay.labels.bayes_error import bayes_error_kde, bayes_error_knn, bayes_error_soft
from assay.labels.co_teaching import CoTeaching
from assay.labels.confident_learning import (
    ConfidentLearning,
    LabelNoise,
    confident_joint,
    estimate_joint,
    label_quality,
)
from assay.labels.cross_validate import cross_probabilities
from assay.labels.elr import ELR
from assay.labels.elr_plus import ELRPlus
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
from assay.labels.rcal import RCAL
from assay.labels.robust_class_gaussians import FittedClassGaussians, RobustClassGaussians, mean_error_bound

__all__ = [
    "CoTeaching",
    "ConfidentLearning",
    "ELR",
    "ELRPlus",
    "FittedClassGaussians",
    "LabelNoise",
    "NestedClassifier",
    "NestedDropout",
    "NoiseFit",
    "PruneAndRetrain",
    "RCAL",
    "Repair",
    "RobustClassGaussians",
    "Standing",
    "bayes_error_kde",
    "bayes_error_knn",
    "bayes_error_soft",
    "confident_joint",
    "consensus_from_votes",
    "corrected_benchmark",
    "cross_probabilities",
    "crossover_prevalence",
    "estimate_joint",
    "label_quality",
    "mean_error_bound",
    "noise_fit_curve",
    "noise_prevalence_curve",
    "prefix_accuracy",
    "prefix_logits",
    "select_width",
]
