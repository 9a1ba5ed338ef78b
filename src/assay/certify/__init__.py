"""What can be guaranteed: bounds, certified radii, prediction sets."""

from assay.certify.aps import APS
from assay.certify.base import Bounder, Certificate, Certifier, FittedSets, Region, SetPredictor
from assay.certify.crown import CROWN
from assay.certify.ibp import IBP
from assay.certify.intervals import Intervals, LinearBounds
from assay.certify.lac import LAC
from assay.certify.ptt import PTT, FittedPTT
from assay.certify.raps import RAPS
from assay.certify.robust_conformal_training import RobustConformalTraining, rct_loss
from assay.certify.rscp import RSCP, FittedRSCP
from assay.certify.rscp_plus import RSCPPlus, bernstein_bound, hoeffding_bound
from assay.certify.smoothed_scores import SmoothedScores, noisy_outputs
from assay.certify.smoothing import RandomizedSmoothing

__all__ = [
    "APS",
    "CROWN",
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
    "LinearBounds",
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
