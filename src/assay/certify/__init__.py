"""What can be guaranteed: bounds, certified radii, prediction sets."""

from assay.certify.aps import APS
from assay.certify.base import Bounder, Certificate, Certifier, FittedSets, Region, SetPredictor
from assay.certify.bounds import LpBall, Perturbation, SynonymSet
from assay.certify.bounds.alpha import Alpha
from assay.certify.bounds.jacobian import jacobian_bounds, local_lipschitz
from assay.certify.bounds.module import BoundedModule, margins
from assay.certify.certified_training import CertifiedTrainer, CROWNIBPTraining, EpsScheduler
from assay.certify.crown import CROWN
from assay.certify.ibp import IBP
from assay.certify.intervals import Intervals, LinearBounds
from assay.certify.lac import LAC
from assay.certify.loss_fusion import loss_fusion_bound
from assay.certify.ptt import PTT, FittedPTT
from assay.certify.raps import RAPS
from assay.certify.robust_conformal_training import RobustConformalTraining, rct_loss
from assay.certify.rscp import RSCP, FittedRSCP
from assay.certify.rscp_plus import RSCPPlus, bernstein_bound, hoeffding_bound
from assay.certify.smoothed_scores import SmoothedScores, noisy_outputs
from assay.certify.smoothing import RandomizedSmoothing
from assay.certify.vnnlib import HandOver, export_onnx, hand_over, vnnlib_query
from assay.certify.weight_perturbation import FlatTraining, weight_balls, weight_loss_bound, worst_weight_loss

__all__ = [
    "APS",
    "CROWN",
    "IBP",
    "LAC",
    "PTT",
    "RAPS",
    "RSCP",
    "Alpha",
    "BoundedModule",
    "Bounder",
    "CROWNIBPTraining",
    "Certificate",
    "CertifiedTrainer",
    "Certifier",
    "EpsScheduler",
    "FittedPTT",
    "FittedRSCP",
    "FittedSets",
    "FlatTraining",
    "HandOver",
    "Intervals",
    "LinearBounds",
    "LpBall",
    "Perturbation",
    "RSCPPlus",
    "RandomizedSmoothing",
    "Region",
    "RobustConformalTraining",
    "SetPredictor",
    "SmoothedScores",
    "SynonymSet",
    "bernstein_bound",
    "export_onnx",
    "hand_over",
    "hoeffding_bound",
    "jacobian_bounds",
    "local_lipschitz",
    "loss_fusion_bound",
    "margins",
    "noisy_outputs",
    "rct_loss",
    "vnnlib_query",
    "weight_balls",
    "weight_loss_bound",
    "worst_weight_loss",
]
