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
from assay.represent.gromov import gromov_delta
from assay.represent.info_nce import info_nce
from assay.represent.mmcr import mmcr_loss
from assay.represent.noise_encoder import FiLMConvNet, NoiseConditionedEncoder, SmallViT, TimmTimeToken
from assay.represent.rrcm import RRCMNetwork, RRCMPretrainer, rrcm_loss
from assay.represent.simsiam import SelfSupervised, SimSiam, linear_classifier, simsiam_loss

__all__ = [
    "info_nce",
    "rrcm_loss",
    "RRCMPretrainer",
    "RRCMNetwork",
    "TimmTimeToken",
    "SmallViT",
    "NoiseConditionedEncoder",
    "FiLMConvNet",
    "Augmentation",
    "HyperbolicMLR",
    "SelfSupervised",
    "SimSiam",
    "ToPoincare",
    "dist",
    "expmap",
    "expmap0",
    "gromov_delta",
    "linear_classifier",
    "logmap0",
    "mmcr_loss",
    "mobius_add",
    "poincare_mean",
    "project",
    "simsiam_loss",
]
