"""Representations learned without labels or for a numeric target, and what they are read with."""

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
from assay.represent.embedding_regressor import UnitRegressor, embedding_regressor
from assay.represent.gromov import gromov_delta
from assay.represent.info_nce import info_nce
from assay.represent.linear_probe import linear_probe
from assay.represent.mmcr import mmcr_loss
from assay.represent.noise_encoder import FiLMConvNet, NoiseConditionedEncoder, SmallViT, TimmTimeToken
from assay.represent.ordinality import continuity, ordinality
from assay.represent.regression_pretrain import ContrastiveRegressionPretrainer
from assay.represent.rrcm import RRCMNetwork, RRCMPretrainer, rrcm_loss
from assay.represent.simsiam import SelfSupervised, SimSiam, linear_classifier, simsiam_loss

__all__ = [
    "Augmentation",
    "BarlowTwins",
    "ContrastiveRegressionPretrainer",
    "FiLMConvNet",
    "HyperbolicMLR",
    "NoiseConditionedEncoder",
    "RRCMNetwork",
    "RRCMPretrainer",
    "SelfSupervised",
    "SimSiam",
    "SmallViT",
    "TimmTimeToken",
    "ToPoincare",
    "UnitRegressor",
    "barlow_twins_loss",
    "continuity",
    "dist",
    "embedding_regressor",
    "expmap",
    "expmap0",
    "gromov_delta",
    "info_nce",
    "linear_classifier",
    "linear_probe",
    "logmap0",
    "mmcr_loss",
    "mobius_add",
    "ordinality",
    "poincare_mean",
    "project",
    "rrcm_loss",
    "simsiam_loss",
]
