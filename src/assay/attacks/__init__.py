"""Everything that perturbs an input to fool a model: gradient and query engines, the attacks on them, and streams."""

from assay.attacks.apgd import APGD
from assay.attacks.autoattack import AutoAttack
from assay.attacks.balls import L1, L2, Ball, Linf
from assay.attacks.base import Attack, AttackResult, Goal, Ordered, Targeted, Toward, Untargeted
from assay.attacks.boundary import BoundaryAttack
from assay.attacks.carliniwagner import CarliniWagner
from assay.attacks.cgba import CGBA, CGBAH
from assay.attacks.ddn import DDN
from assay.attacks.deepfool import DeepFool
from assay.attacks.difgsm import DIFGSM
from assay.attacks.engine import GradientAttack
from assay.attacks.fab import FAB
from assay.attacks.fgsm import FGSM
from assay.attacks.fmn import FMN
from assay.attacks.hopskipjump import HopSkipJump
from assay.attacks.mifgsm import MIFGSM
from assay.attacks.nearest import NearestAttack
from assay.attacks.nifgsm import NIFGSM
from assay.attacks.noise import RandomNoise
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
    "Attack",
    "AttackResult",
    "Ball",
    "BoundaryAttack",
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
    "Picker",
    "RandomK",
    "RandomNoise",
    "SingleRef",
    "Square",
    "Stream",
    "Targeted",
    "Untargeted",
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
]
