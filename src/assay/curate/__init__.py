"""Which training samples matter, and which points a teacher should label: scores, subsets, selectors, queries."""

from assay.curate.active_distillation import ActiveDistillation, Distilled, QueryRound
from assay.curate.ast import AST
from assay.curate.attribution import datamodel_score, fitted_multiplier, linear_datamodel, trak_scores
from assay.curate.base import Selector, at_equal_steps
from assay.curate.coreset_query import CoresetQuery
from assay.curate.data_diet import DataDiet, FittedDiet
from assay.curate.dep_round import dep_round, inclusion_probabilities
from assay.curate.el2n import el2n_runs, el2n_scores
from assay.curate.expert_trajectories import ExpertTrajectories, Trajectories
from assay.curate.forgetting import ForgettingTracker, forget_scores
from assay.curate.gains import confidence_gains, entropy_gains, margin_gains
from assay.curate.grand import grand_runs, grand_scores
from assay.curate.krr_st import KRRST, TargetSet, krr_predict
from assay.curate.memorization import Memorization, influence_scores, memorization_of, memorization_scores, subset_masks
from assay.curate.model_pool import ModelPool
from assay.curate.noisy_longtail import flip_labels, flip_matrix, make_noisy_longtail, redraw_matrix
from assay.curate.query import Pool, Query, QuerySampler
from assay.curate.rad import RADistribution, RADSampler, inverse_gains, rad_distribution
from assay.curate.random_query import RandomQuery
from assay.curate.random_subset import RandomSubset
from assay.curate.siamese_augmentation import SiameseAugmentation
from assay.curate.subsets import offset_subset, prune_by_score
from assay.curate.trajectory_matching import (
    SyntheticSet,
    TrajectoryMatching,
    evaluate_distilled,
    representative,
)
from assay.curate.uncertainty_mixup import UncertaintyMixup
from assay.curate.uncertainty_query import UncertaintyQuery

__all__ = [
    "AST",
    "ActiveDistillation",
    "CoresetQuery",
    "DataDiet",
    "Distilled",
    "FittedDiet",
    "ExpertTrajectories",
    "ForgettingTracker",
    "KRRST",
    "Memorization",
    "ModelPool",
    "Pool",
    "Query",
    "QueryRound",
    "QuerySampler",
    "RADSampler",
    "RADistribution",
    "RandomQuery",
    "RandomSubset",
    "Selector",
    "SiameseAugmentation",
    "SyntheticSet",
    "TargetSet",
    "Trajectories",
    "TrajectoryMatching",
    "UncertaintyMixup",
    "UncertaintyQuery",
    "at_equal_steps",
    "confidence_gains",
    "datamodel_score",
    "dep_round",
    "el2n_runs",
    "el2n_scores",
    "entropy_gains",
    "evaluate_distilled",
    "fitted_multiplier",
    "flip_labels",
    "flip_matrix",
    "forget_scores",
    "grand_runs",
    "grand_scores",
    "inclusion_probabilities",
    "influence_scores",
    "inverse_gains",
    "krr_predict",
    "linear_datamodel",
    "make_noisy_longtail",
    "margin_gains",
    "memorization_of",
    "memorization_scores",
    "offset_subset",
    "prune_by_score",
    "rad_distribution",
    "redraw_matrix",
    "representative",
    "subset_masks",
    "trak_scores",
]
