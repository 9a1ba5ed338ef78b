"""Representations learned without labels, and what they are read with."""

from assay.nets.poincare import (
    HyperbolicMLR,
    ToPoincare,
    dist,
    expmap,
    expmap0,
    logmap0,
    mobius_add,
    poincare_mean,
    project,
)
from assay.represent.augment import Augmentation
from assay.represent.barlow_twins import BarlowTwins, barlow_twins_loss
from assay.represent.byol import BYOL, byol_loss
from assay.represent.completeness import Completeness, SpatialMultiGrid, completeness_probe
from assay.represent.contrastive_pretraining import ContrastivePretraining
from assay.represent.contrastive_report import (
    penalty_distribution,
    penalty_entropy,
    temperature_sweep,
    tolerance,
    uniformity,
)
from assay.represent.embedding_regressor import UnitRegressor, embedding_regressor
from assay.represent.gromov import gromov_delta
from assay.represent.info_nce import info_nce
from assay.represent.linear_probe import linear_probe
from assay.represent.logistic_probe import LogisticProbe
from assay.represent.mmcr import mmcr_loss
from assay.represent.moco import MoCo
from assay.represent.naive_bayes_probe import NaiveBayesProbe
from assay.represent.noise_encoder import FiLMConvNet, NoiseConditionedEncoder, SmallViT, TimmTimeToken
from assay.represent.opis import (
    OPISResult,
    calibration_range,
    epsilon_opis,
    opis,
    recall_at,
    threshold_report,
    utility_curves,
)
from assay.represent.ordinality import continuity, ordinality
from assay.represent.predictive_coding import EncoderPair, PredictiveCoding, spectral_encoder
from assay.represent.probe_curves import ProbeCurves, TwoRegimes, compare_probes, two_regimes
from assay.represent.regression_pretrain import ContrastiveRegressionPretrainer
from assay.represent.rrcm import RRCMNetwork, RRCMPretrainer, rrcm_loss
from assay.represent.sample_complexity import GaussianClasses, sample_complexity
from assay.represent.simclr import SimCLR
from assay.represent.simsiam import SelfSupervised, SimSiam, linear_classifier, simsiam_loss
from assay.represent.spectrum import largest_singular_value_ratio, singular_value_entropy
from assay.represent.two_views import TwoViews
from assay.represent.vicreg import VICReg, vicreg_loss
from assay.represent.wasserstein_dependency import FittedDependency, WassersteinDependency, exact_wdm

__all__ = [
    "Augmentation",
    "BYOL",
    "BarlowTwins",
    "Completeness",
    "ContrastivePretraining",
    "ContrastiveRegressionPretrainer",
    "EncoderPair",
    "FiLMConvNet",
    "FittedDependency",
    "GaussianClasses",
    "HyperbolicMLR",
    "LogisticProbe",
    "MoCo",
    "NaiveBayesProbe",
    "NoiseConditionedEncoder",
    "OPISResult",
    "PredictiveCoding",
    "ProbeCurves",
    "RRCMNetwork",
    "RRCMPretrainer",
    "SelfSupervised",
    "SimCLR",
    "SimSiam",
    "SmallViT",
    "SpatialMultiGrid",
    "TimmTimeToken",
    "ToPoincare",
    "TwoRegimes",
    "TwoViews",
    "UnitRegressor",
    "VICReg",
    "WassersteinDependency",
    "barlow_twins_loss",
    "byol_loss",
    "calibration_range",
    "compare_probes",
    "completeness_probe",
    "continuity",
    "dist",
    "embedding_regressor",
    "epsilon_opis",
    "exact_wdm",
    "expmap",
    "expmap0",
    "gromov_delta",
    "info_nce",
    "largest_singular_value_ratio",
    "linear_classifier",
    "linear_probe",
    "logmap0",
    "mmcr_loss",
    "mobius_add",
    "opis",
    "ordinality",
    "penalty_distribution",
    "penalty_entropy",
    "poincare_mean",
    "project",
    "recall_at",
    "rrcm_loss",
    "sample_complexity",
    "simsiam_loss",
    "singular_value_entropy",
    "spectral_encoder",
    "temperature_sweep",
    "threshold_report",
    "tolerance",
    "two_regimes",
    "uniformity",
    "utility_curves",
    "vicreg_loss",
]
