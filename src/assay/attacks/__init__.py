"""Everything that perturbs an input to fool a model: gradient and query engines, the attacks on them, and streams."""

<<<<<<< HEAD
from assay.attacks.apgd import APGD
from assay.attacks.autoattack import AutoAttack
=======
from assay.attacks.adversarial_distillation import AdversarialDistillation
>>>>>>> w-tilt
from assay.attacks.balls import L1, L2, Ball, Linf
from assay.attacks.base import Attack, AttackResult, Goal, Ordered, Targeted, Toward, Untargeted
from assay.attacks.boundary import BoundaryAttack
from assay.attacks.carliniwagner import CarliniWagner
from assay.attacks.cgba import CGBA, CGBAH
<<<<<<< HEAD
from assay.attacks.ddn import DDN
from assay.attacks.deepfool import DeepFool
from assay.attacks.difgsm import DIFGSM
from assay.attacks.engine import GradientAttack
from assay.attacks.fab import FAB
from assay.attacks.fgsm import FGSM
from assay.attacks.fmn import FMN
=======
from assay.attacks.cw_topk import CWTopK
from assay.attacks.engine import GradientAttack
from assay.attacks.fast_feature_fool import FastFeatureFool
from assay.attacks.fgsm import FGSM
from assay.attacks.gd_uap import GDUAP
>>>>>>> w-tilt
from assay.attacks.hopskipjump import HopSkipJump
from assay.attacks.mifgsm import MIFGSM
from assay.attacks.nearest import NearestAttack
from assay.attacks.nifgsm import NIFGSM
from assay.attacks.noise import RandomNoise
<<<<<<< HEAD
from assay.attacks.online import (
    OfflineTopK,
    OnlineAttack,
    OnlinePicker,
    Optimistic,
    Picker,
    RandomK,
    SingleRef,
    Stream,
    Virtual,
    VirtualPlus,
    attack_values,
    capacity_curve,
    competitive_ratio,
    competitive_ratios,
    optimal_threshold,
    run_stream,
    virtual_plus_limit,
    virtual_plus_ratio,
    virtual_ratio,
)
from assay.attacks.pgd import PGD
from assay.attacks.scores import ScoreSearch
from assay.attacks.square import Square
from assay.attacks.tifgsm import TIFGSM

__all__ = [
    "ScoreSearch",
    "AutoAttack",
    "TIFGSM",
    "DIFGSM",
    "NIFGSM",
    "MIFGSM",
    "CarliniWagner",
    "FMN",
    "DDN",
    "DeepFool",
    "FAB",
    "NearestAttack",
    "Toward",
    "APGD",
    "CGBA",
    "CGBAH",
    "FGSM",
    "PGD",
=======
from assay.attacks.ordered_qp import OrderedQP, ordered_constraints, project_ordered
from assay.attacks.penalty import PenaltyAttack, sample_targets
from assay.attacks.pgd import PGD
from assay.attacks.quadattack import QuadAttack
from assay.attacks.square import Square
from assay.attacks.universal import ActivationAttack, Perturbation, fooling_rate, generalized_fooling_rate

__all__ = [
    "ActivationAttack",
    "AdversarialDistillation",
>>>>>>> w-tilt
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
    "OfflineTopK",
    "OnlineAttack",
    "OnlinePicker",
    "Optimistic",
    "Ordered",
<<<<<<< HEAD
    "Picker",
    "RandomK",
=======
    "OrderedQP",
    "PGD",
    "PenaltyAttack",
    "Perturbation",
    "QuadAttack",
>>>>>>> w-tilt
    "RandomNoise",
    "SingleRef",
    "Square",
    "Stream",
    "Targeted",
    "Untargeted",
<<<<<<< HEAD
    "Virtual",
    "VirtualPlus",
    "attack_values",
    "capacity_curve",
    "competitive_ratio",
    "competitive_ratios",
    "optimal_threshold",
    "run_stream",
    "virtual_plus_limit",
    "virtual_plus_ratio",
    "virtual_ratio",
=======
    "fooling_rate",
    "generalized_fooling_rate",
    "ordered_constraints",
    "project_ordered",
    "sample_targets",
>>>>>>> w-tilt
]
