"""Everything that perturbs an input to fool a model: the gradient engine, the query engine, and the attacks on them."""

from assay.attacks.adversarial_distillation import AdversarialDistillation
from assay.attacks.balls import L1, L2, Ball, Linf
from assay.attacks.base import Attack, AttackResult, Goal, Ordered, Targeted, Untargeted
from assay.attacks.boundary import BoundaryAttack
from assay.attacks.cgba import CGBA, CGBAH
from assay.attacks.cw_topk import CWTopK
from assay.attacks.engine import GradientAttack
from assay.attacks.fast_feature_fool import FastFeatureFool
from assay.attacks.fgsm import FGSM
from assay.attacks.gd_uap import GDUAP
from assay.attacks.hopskipjump import HopSkipJump
from assay.attacks.noise import RandomNoise
from assay.attacks.ordered_qp import OrderedQP, ordered_constraints, project_ordered
from assay.attacks.penalty import PenaltyAttack, sample_targets
from assay.attacks.pgd import PGD
from assay.attacks.quadattack import QuadAttack
from assay.attacks.square import Square
from assay.attacks.universal import ActivationAttack, Perturbation, fooling_rate, generalized_fooling_rate

__all__ = [
    "ActivationAttack",
    "AdversarialDistillation",
    "Attack",
    "AttackResult",
    "Ball",
    "BoundaryAttack",
    "CGBA",
    "CGBAH",
    "CWTopK",
    "FGSM",
    "FastFeatureFool",
    "GDUAP",
    "Goal",
    "GradientAttack",
    "HopSkipJump",
    "L1",
    "L2",
    "Linf",
    "Ordered",
    "OrderedQP",
    "PGD",
    "PenaltyAttack",
    "Perturbation",
    "QuadAttack",
    "RandomNoise",
    "Square",
    "Targeted",
    "Untargeted",
    "fooling_rate",
    "generalized_fooling_rate",
    "ordered_constraints",
    "project_ordered",
    "sample_targets",
]
