"""What can be guaranteed: bounds, certified radii, prediction sets."""

from assay.certify.aps import APS
from assay.certify.base import Bounder, Certificate, Certifier, FittedSets, Region, SetPredictor
from assay.certify.bounds import LpBall, Perturbation, SynonymSet
from assay.certify.bounds.alpha import Alpha
from assay.certify.bounds.jacobian import jacobian_bounds, local_lipschitz
from assay.certify.bounds.module import BoundedModule, margins
from assay.certify.box_theory import (
    box_reconstruction_theory,
    init_tightness_theory,
    is_propagation_invariant,
    layerwise_box,
    optimal_box,
    sign_rank_one,
)
from assay.certify.certified_training import CROWNIBPTraining, EpsScheduler
from assay.certify.consistency_finetune import consistency_finetune
from assay.certify.consistency_training import ConsistencyTraining, consistency_regulariser
from assay.certify.crown import CROWN
from assay.certify.gaussian_training import GaussianTraining
from assay.certify.ibp import IBP
from assay.certify.ibp_training import IBPTraining
from assay.certify.intervals import Intervals, LinearBounds
from assay.certify.lac import LAC
from assay.certify.level_classifier import LevelClassifier
from assay.certify.local_global import global_error_bound
from assay.certify.loss_fusion import loss_fusion_bound
from assay.certify.macer import MACER, soft_radius
from assay.certify.pac_bayes import (
    binary_kl,
    catoni_bound,
    kl_inverse,
    maurer_bound,
    mcallester_bound,
    monte_carlo_bound,
)
from assay.certify.pac_bayes_posterior import FittedPosterior, PACBayesPosterior, RiskCertificate
from assay.certify.ptt import PTT, FittedPTT
from assay.certify.raps import RAPS
from assay.certify.robust_conformal_training import RobustConformalTraining, rct_loss
from assay.certify.rscp import RSCP, FittedRSCP
from assay.certify.rscp_plus import RSCPPlus, bernstein_bound, hoeffding_bound
from assay.certify.sabr import SABR
from assay.certify.smooth_adv import SmoothAdv
from assay.certify.smoothed_classifier import SmoothedClassifier
from assay.certify.smoothed_scores import SmoothedScores, noisy_outputs
from assay.certify.smoothing import RandomizedSmoothing
from assay.certify.taps import TAPS
from assay.certify.tightness import propagation_boxes, propagation_tightness
from assay.certify.vnnlib import HandOver, export_onnx, hand_over, vnnlib_query
from assay.certify.weight_perturbation import FlatTraining, weight_balls, weight_loss_bound, worst_weight_loss

__all__ = [
    "APS",
    "Alpha",
    "BoundedModule",
    "Bounder",
    "CROWN",
    "CROWNIBPTraining",
    "Certificate",
    "Certifier",
    "ConsistencyTraining",
    "EpsScheduler",
    "FittedPTT",
    "FittedPosterior",
    "FittedRSCP",
    "FittedSets",
    "FlatTraining",
    "GaussianTraining",
    "HandOver",
    "IBP",
    "IBPTraining",
    "Intervals",
    "LAC",
    "LevelClassifier",
    "LinearBounds",
    "LpBall",
    "MACER",
    "PACBayesPosterior",
    "PTT",
    "Perturbation",
    "RAPS",
    "RSCP",
    "RSCPPlus",
    "RandomizedSmoothing",
    "Region",
    "RiskCertificate",
    "RobustConformalTraining",
    "SABR",
    "SetPredictor",
    "SmoothAdv",
    "SmoothedClassifier",
    "SmoothedScores",
    "SynonymSet",
    "TAPS",
    "bernstein_bound",
    "binary_kl",
    "box_reconstruction_theory",
    "catoni_bound",
    "consistency_finetune",
    "consistency_regulariser",
    "export_onnx",
    "global_error_bound",
    "hand_over",
    "hoeffding_bound",
    "init_tightness_theory",
    "is_propagation_invariant",
    "jacobian_bounds",
    "kl_inverse",
    "layerwise_box",
    "local_lipschitz",
    "loss_fusion_bound",
    "margins",
    "maurer_bound",
    "mcallester_bound",
    "monte_carlo_bound",
    "noisy_outputs",
    "optimal_box",
    "propagation_boxes",
    "propagation_tightness",
    "rct_loss",
    "sign_rank_one",
    "soft_radius",
    "vnnlib_query",
    "weight_balls",
    "weight_loss_bound",
    "worst_weight_loss",
]
