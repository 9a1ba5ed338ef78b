"""Decisions: learners that see only what their own actions cost, and searches for the best input of a network."""

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
from assay.decide.uniform import UniformArms

__all__ = [
    "Action",
    "AttackSearch",
    "BanditHistory",
    "CDSM",
    "ClassificationBandit",
    "Environment",
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
    "UniformArms",
    "fast_gamma",
    "fast_igw",
    "inverse_gap_weighting",
    "run_bandit",
    "square_gamma",
]
