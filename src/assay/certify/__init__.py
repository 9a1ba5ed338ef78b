"""What can be guaranteed: bounds, certified radii, prediction sets."""

from assay.certify.aps import APS
from assay.certify.base import Bounder, Certificate, Certifier, FittedSets, Region, SetPredictor
from assay.certify.consistency_finetune import consistency_finetune
from assay.certify.consistency_training import ConsistencyTraining, consistency_regulariser
from assay.certify.gaussian_training import GaussianTraining
from assay.certify.ibp import IBP
from assay.certify.intervals import Intervals
from assay.certify.lac import LAC
from assay.certify.level_classifier import LevelClassifier
from assay.certify.macer import MACER, soft_radius
from assay.certify.pac_bayes import (
    binary_kl,
    gaussian_kl,
    kl_inverse,
    occam_binomial,
    occam_kl,
    pac_bayes_kl,
    pac_bayes_mcallester,
)
from assay.certify.ptt import PTT, FittedPTT
from assay.certify.raps import RAPS
from assay.certify.robust_conformal_training import RobustConformalTraining, rct_loss
from assay.certify.rscp import RSCP, FittedRSCP
from assay.certify.rscp_plus import RSCPPlus, bernstein_bound, hoeffding_bound
from assay.certify.smooth_adv import SmoothAdv
from assay.certify.smoothed_classifier import SmoothedClassifier
from assay.certify.smoothed_scores import SmoothedScores, noisy_outputs
from assay.certify.smoothing import RandomizedSmoothing

__all__ = [
    "pac_bayes_mcallester",
    "pac_bayes_kl",
    "occam_kl",
    "occam_binomial",
    "kl_inverse",
    "gaussian_kl",
    "binary_kl",
    "consistency_finetune",
    "LevelClassifier",
    "soft_radius",
    "consistency_regulariser",
    "SmoothedClassifier",
    "SmoothAdv",
    "MACER",
    "GaussianTraining",
    "ConsistencyTraining",
    "APS",
    "IBP",
    "LAC",
    "PTT",
    "RAPS",
    "RSCP",
    "Bounder",
    "Certificate",
    "Certifier",
    "FittedPTT",
    "FittedRSCP",
    "FittedSets",
    "Intervals",
    "RSCPPlus",
    "RandomizedSmoothing",
    "Region",
    "RobustConformalTraining",
    "SetPredictor",
    "SmoothedScores",
    "bernstein_bound",
    "hoeffding_bound",
    "noisy_outputs",
    "rct_loss",
]
