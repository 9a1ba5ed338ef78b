"""Decisions: learners that see only what their own actions cost, searches for the best input of a network, and when
not to answer."""

from assay.decide.attack_search import AttackSearch, NetworkObjective
from assay.decide.base import Action, Learner, Policy
from assay.decide.cdsm import CDSM
from assay.decide.classification_bandit import ClassificationBandit
from assay.decide.direct_search import OptResult
from assay.decide.hybrid_attack_search import HybridAttackSearch
from assay.decide.igw import fast_gamma, fast_igw, inverse_gap_weighting, square_gamma
from assay.decide.neu_fast_cb import NeuFastCB
from assay.decide.neu_square_cb import NeuSquareCB
from assay.decide.neural_eps_greedy import NeuralEpsGreedy
from assay.decide.neural_ts import NeuralTS
from assay.decide.neural_ucb import NeuralUCB
from assay.decide.online_regressor import OnlineRegressor
from assay.decide.perturbed_net import PerturbedNet
from assay.decide.runner import BanditHistory, Environment, run_bandit
from assay.decide.safeguard import Decisions, FittedSafeguard, Safeguard
from assay.decide.safety_panel import ood_auroc, perturbation_panel
from assay.decide.selective import (
    aurc,
    e_auopt_rc,
    e_aurc,
    optimal_area,
    random_excess,
    risk_coverage,
    trust_index,
)
from assay.decide.uniform import UniformArms
from assay.decide.vision_language import answer_logits, sequence_confidence

__all__ = [
    "Action",
    "AttackSearch",
    "BanditHistory",
    "CDSM",
    "ClassificationBandit",
    "Decisions",
    "Environment",
    "FittedSafeguard",
    "HybridAttackSearch",
    "Learner",
    "NetworkObjective",
    "NeuFastCB",
    "NeuSquareCB",
    "NeuralEpsGreedy",
    "NeuralTS",
    "NeuralUCB",
    "OnlineRegressor",
    "OptResult",
    "PerturbedNet",
    "Policy",
    "Safeguard",
    "UniformArms",
    "answer_logits",
    "aurc",
    "e_auopt_rc",
    "e_aurc",
    "fast_gamma",
    "fast_igw",
    "inverse_gap_weighting",
    "ood_auroc",
    "optimal_area",
    "perturbation_panel",
    "random_excess",
    "risk_coverage",
    "run_bandit",
    "sequence_confidence",
    "square_gamma",
    "trust_index",
]
